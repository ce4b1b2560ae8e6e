"""Bidirectional models as scores of a window of a rollout: how a window becomes their sample, and what they predict of it.

A window is K latents of a stream. For a score it is a video by itself: its first frame is the frame before the window, decoded
and encoded again, and its cameras are relative to that frame. Mask, first-frame condition, control maps and text are built
anew. The view of a window of ground truth is therefore the sample that a bidirectional run would read there, bit for bit. Only
a video codec's latents after the first differ from a fresh encoding, since the encoder remembers the frames before the window.

B batch, C latent channels, K latents of the window, F frames, H W px, h w latent rows and columns.
"""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from model.causal.cache import TokenGrid
from model.causal.condition import TurnedSource, camera_maps, pose_distance, turned_condition
from model.causal.passes import BlockCondition, SequenceLayout, sequence_layout, teacher_forced
from model.causal.spec import CausalSpec
from model.control.pluecker import relative_to_origin
from model.noise import ExpertName
from model.training import flow_matching
from model.training.parts import ModelParts
from model.world import World


class View(NamedTuple):
    """A window as a bidirectional model reads it: the latents of the frame before and of the window, and their condition."""

    x0: Tensor  # [B, C, 1 + K, h, w]
    condition: BlockCondition


class Window(NamedTuple):
    """Latents of a stream, with everything that a score needs to know of it.

    x0: [B, C, K, h, w]. latents: their numbers. before: frames of the stream before the window, in [-1, 1], [B, 3, f, H, W]:
    all of them for a world that turns frames, otherwise at least the last one.
    """

    x0: Tensor
    latents: range
    before: Tensor


class Score(Protocol):
    """How a kind of bidirectional model reads windows."""

    def view(self, batch: dict[str, Any], window: Window) -> View:
        """Return a window as a sample. batch: whose stream it is."""
        ...

    def velocity(self, world: World, view: View, sigma_B: Tensor, noise_BCThw: Tensor, name: ExpertName) -> Tensor:
        """Return the velocity of the window's latents, float32 [B, C, K, h, w], after noise was added to them.

        noise: of the frame before and of the window, [B, C, 1 + K, h, w].
        """
        ...

    def unconditional(self, view: View) -> View:
        """Return the view away from which guidance leads."""
        ...


def frames_of(window: range, frames_per_latent: int) -> range:
    """Return the frames of a window's sample: the last frame before the window, and those of its latents."""
    last = (window.start - 1) * frames_per_latent
    return range(last, last + 1 + len(window) * frames_per_latent)


def sample_of(batch: dict[str, Any], frames: range) -> dict[str, Any]:
    """Return what a loader would give for these frames of a batch, except their pictures: cameras and texts.

    The text is that of the clip with the middle frame.
    """
    part = slice(frames.start, frames.stop)
    pose = relative_to_origin(batch["pose"][:, part]).float()
    spans = [_spans_within(each, frames) for each in batch["spans"]]
    middle = len(frames) // 2
    return {
        "pose": pose,
        "origin": torch.eye(4).expand(len(pose), 4, 4),
        "intrinsics": batch["intrinsics"][:, part],
        "camera_known": batch["camera_known"],
        "spans": spans,
        "text": [text_at(each, middle) for each in spans],
    }


def _spans_within(spans: list[tuple[int, str]], frames: range) -> list[tuple[int, str]]:
    """Return the texts of some frames, from a frame on, counted from their first."""
    later = [(first - frames.start, text) for first, text in spans if frames.start < first < frames.stop]
    return [(0, text_at(spans, frames.start)), *later]


def text_at(spans: list[tuple[int, str]], frame: int) -> str:
    """Return the text of a frame, given the texts of spans from a frame on."""
    return next(text for first, text in reversed(spans) if first <= frame)


class FirstFrameScore:
    """Reads windows as Wan2.2 reads videos: all latents are noisy, next to mask and latents of the first frame."""

    def __init__(self, parts: ModelParts) -> None:
        self._parts = parts

    def view(self, batch: dict[str, Any], window: Window) -> View:
        parts = self._parts
        frames = frames_of(window.latents, parts.codec.frames_per_latent)
        before = window.before[:, :, -1]
        image = parts.codec.encode_first_frame(before, len(frames))
        encoders = parts.codec, parts.text_encoder, parts.device
        _, text, maps, _ = flow_matching.encode_conditioning(sample_of(batch, frames), image, *encoders)
        x0 = torch.cat([parts.codec.encode(before[:, :, None]), window.x0], 2)
        return View(x0, BlockCondition(range(x0.shape[2]), image, text, maps))

    def velocity(self, world: World, view: View, sigma_B: Tensor, noise_BCThw: Tensor, name: ExpertName) -> Tensor:
        x = torch.cat([add_noise(view.x0, sigma_B, noise_BCThw), view.condition.condition], 1)
        levels = sigma_B[:, None].expand(-1, x.shape[2])
        velocity: Tensor = world.expert_named(name)(x, levels, view.condition.text, view.condition.maps)
        return velocity[:, :, 1:].float()

    def unconditional(self, view: View) -> View:
        """Return the view without text and camera."""
        text = self._parts.text_encoder([""] * len(view.x0))
        return view._replace(condition=view.condition._replace(text=text, maps=None))


class TurnedScore:
    """Reads windows as one block of a causal world that turns frames (`CausalSpec.warp`), with the frame before as its past.

    A run of the objective `teacher_forcing` with blocks of the window's length trains such a model. The first source is the
    frame before the window. The second one is, for each frame, the nearest by pose of the frames up to there.
    """

    def __init__(self, parts: ModelParts, spec: CausalSpec) -> None:
        self._parts, self._spec = parts, spec
        self._layouts: dict[tuple[int, ...], SequenceLayout] = {}

    def view(self, batch: dict[str, Any], window: Window) -> View:
        parts, spec = self._parts, self._spec
        if len(window.latents) != spec.block:
            raise ValueError(f"this score reads windows of {spec.block} latents, not {len(window.latents)}")
        device, frames = parts.device, frames_of(window.latents, 1)
        sample = sample_of(batch, frames)
        pose, known = sample["pose"].to(device), batch["camera_known"].to(device)
        height, width = window.before.shape[-2:]
        intrinsics = flow_matching.valid_intrinsics(sample, (height, width), device)
        size = window.x0.shape[-2], window.x0.shape[-1]
        maps = camera_maps(spec, parts.codec, pose, intrinsics, size, pose[:, 0], None) * known[:, None, None, None, None]
        count = window.before.shape[2]
        earlier = batch["pose"][:, frames.start + 1 - count : frames.start + 1].to(device)
        earlier_pose = torch.linalg.inv(batch["pose"][:, frames.start].to(device).double())[:, None] @ earlier.double()
        nearest = pose_distance(pose[:, 1:], earlier_pose[:, None]).argmin(-1)
        pairs = list(zip(window.before, earlier_pose.float(), nearest, strict=True))
        first = TurnedSource(
            window.before[:, :, -1][:, None].expand(-1, spec.block, -1, -1, -1), pose[:, :1].expand(-1, spec.block, -1, -1)
        )
        second = TurnedSource(
            torch.stack([pictures[:, chosen].transpose(0, 1) for pictures, _, chosen in pairs]),
            torch.stack([poses[chosen] for _, poses, chosen in pairs]),
        )
        turned = turned_condition(parts.codec, [(first, None, 0.0), (second, None, 0.0)], pose[:, 1:], intrinsics[:, 1:])
        turned = turned * known[:, None, None, None, None]
        channels = torch.cat([torch.zeros_like(turned[:, :, :1]), turned], 2)
        text = self._texts(sample["spans"], len(frames))
        x0 = torch.cat([parts.codec.encode(window.before[:, :, -1:]), window.x0], 2)
        return View(x0, BlockCondition(range(len(frames)), channels, text, maps))

    def _texts(self, spans: list[list[tuple[int, str]]], frames: int) -> Tensor:
        """Return the text of each latent, [B, T, S, E], or [B, S, E] where no text changes in the batch."""
        if all(len(each) == 1 for each in spans):
            return self._parts.text_encoder([each[0][1] for each in spans])
        encoded = self._parts.text_encoder([text_at(each, frame) for each in spans for frame in range(frames)])
        return encoded.unflatten(0, (len(spans), frames))

    def velocity(self, world: World, view: View, sigma_B: Tensor, noise_BCThw: Tensor, name: ExpertName) -> Tensor:
        clean = torch.zeros(len(sigma_B), view.x0.shape[2], device=sigma_B.device)
        levels = torch.cat([clean[:, :1], sigma_B[:, None].expand(-1, self._spec.block)], 1)
        noisy = add_noise(view.x0, sigma_B, noise_BCThw)
        layout = self._layout(view.x0)
        return teacher_forced(world, view.x0, clean, noisy, levels, view.condition, self._spec, layout, name)

    def _layout(self, x0: Tensor) -> SequenceLayout:
        sizes = tuple(x0.shape[2:])
        if sizes not in self._layouts:
            grid = TokenGrid.of(self._parts.world.high.expert, *sizes[1:])
            self._layouts[sizes] = sequence_layout(self._spec, grid, sizes[0])
        return self._layouts[sizes]

    def unconditional(self, view: View) -> View:
        """Return the view without text: the camera is in its turned pictures."""
        text = self._parts.text_encoder([""] * len(view.x0))
        return view._replace(condition=view.condition._replace(text=text))


def build_score(parts: ModelParts, spec: CausalSpec | None) -> Score:
    """Return how a model is read. spec: that of its run; None: a bidirectional run."""
    return FirstFrameScore(parts) if spec is None else TurnedScore(parts, spec)


def add_noise(x0_BCThw: Tensor, sigma_B: Tensor, noise_BCThw: Tensor) -> Tensor:
    """Return latents at a noise level of each sample."""
    sigma = sigma_B.view(-1, 1, 1, 1, 1)
    return (1 - sigma) * x0_BCThw + sigma * noise_BCThw


def predict_x0(
    score: Score,
    world: World,
    view: View,
    sigma_B: Tensor,
    noise_BCThw: Tensor,
    name: ExpertName,
    guidance: float = 1.0,
) -> Tensor:
    """Return what a model takes the clean window for, [B, C, K, h, w], after noise was added to it.

    noise: see `Score.velocity`. guidance: velocity = plain + guidance x (velocity - plain), where plain is that of
    `Score.unconditional`; 1: none, which saves a pass. Self-Forcing writes a factor of 3 for 4 of these.
    """
    velocity = score.velocity(world, view, sigma_B, noise_BCThw, name)
    if guidance != 1:
        plain = score.velocity(world, score.unconditional(view), sigma_B, noise_BCThw, name)
        velocity = plain + guidance * (velocity - plain)
    noisy = add_noise(view.x0[:, :, 1:], sigma_B, noise_BCThw[:, :, 1:])
    return noisy - sigma_B.view(-1, 1, 1, 1, 1) * velocity


def distribution_matching_loss(x0: Tensor, fake_x0: Tensor, real_x0: Tensor) -> Tensor:
    """Return a loss for each latent, [B, K], whose gradient leads the student's latents from the fake to the real prediction.

    The difference is divided by how far the real prediction is from the student, on average over the sample: each sample has
    its own divisor, so that a loss does not depend on the rest of the batch (Self-Forcing; FastVideo divides by that of the
    batch).
    """
    with torch.no_grad():
        distance = (x0 - real_x0).abs().mean((1, 2, 3, 4), keepdim=True)
        aim = x0 - torch.nan_to_num((fake_x0 - real_x0) / distance)
    return 0.5 * (x0 - aim).square().mean((1, 3, 4))
