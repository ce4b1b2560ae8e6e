"""A rollout: a stream of blocks from a start image, controls and text, with memory that stays constant for ever.

Each block is generated, then committed to the cache. The order is the caller's: frames can be decoded and sent in between.
Noise of a block follows from the seed and the block, so it does not depend on how the stream is cut into calls.

B batch, C latent channels, T latents, F frames, H W px, h w latent rows and columns, S text tokens, E text width.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

import torch
from torch import Tensor

from model.backbone.frame_codec import FrameCodec
from model.backbone.stream_decoders import StreamDecoder
from model.backbone.vae import Codec, FirstFrameStream
from model.causal.cache import Cache, History, PageCache, TokenGrid
from model.causal.condition import (
    KeyFrameMemory,
    Memory,
    RecentMemory,
    TurnedSource,
    camera_maps,
    require_frame_latents,
    turned_condition,
)
from model.causal.passes import BlockCondition, Passes, PreparedBlock, PreparedText, prepare
from model.causal.spec import CausalSpec
from model.noise import draw_noise, seeded_generator
from model.warp import condition_channels
from model.world import World

EAGER = Passes()


class StreamStart(NamedTuple):
    """What a stream starts from.

    pictures: first frames in [-1, 1], [B, 3, H, W]. intrinsics: [B, 4], px of the pictures. text: [B, S, E]. vlm_context:
    hidden states of a vision-language model [B, U, V] (None: no instruction). camera_known: bool [B], False for samples of a
    training batch that have no camera (None: all have one).
    """

    pictures: Tensor
    intrinsics: Tensor
    text: Tensor
    vlm_context: Tensor | None = None
    camera_known: Tensor | None = None


def sample_block(
    world: World,
    prepared: PreparedBlock,
    history: History,
    spec: CausalSpec,
    generator: torch.Generator | Sequence[torch.Generator],
    passes: Passes = EAGER,
    exit_step: int | None = None,
) -> Tensor:
    """Return the latents of a block, [B, C, T, h, w].

    generator: of the batch, or one for each sample. exit_step: number of the step whose prediction of the clean block is
    returned, for training; steps before it have no gradient. None: the last step, as in play. ValueError for an exit step with
    a sampler that predicts no clean block.
    """
    if exit_step is not None and spec.sampler != "consistency":
        raise ValueError(f"only a consistency sampler can exit early, not {spec.sampler}")
    condition = prepared.block.condition
    channels = world.high.expert.config.out_channels
    shape = len(condition), channels, *condition.shape[2:]

    def noise() -> Tensor:
        return draw_noise(shape, generator).to(condition.device)

    x = noise()
    plan = spec.plan(world.noise, first=prepared.block.latents.start == 1)
    for number, ((sigma, name), (next_sigma, next_name)) in enumerate(zip(plan, [*plan[1:], (0.0, plan[-1][1])], strict=True)):
        with torch.set_grad_enabled(torch.is_grad_enabled() and exit_step in (None, number)):
            velocity = passes.denoise(world, x, sigma, prepared, history, name)
        if spec.sampler == "consistency":
            x = x - sigma * velocity
            if number == exit_step:
                return x
            x = (1 - next_sigma) * x + next_sigma * noise() if next_sigma else x
            continue
        stepped = x + (next_sigma - sigma) * velocity
        if spec.sampler == "heun" and next_sigma:
            after = passes.denoise(world, stepped, next_sigma, prepared, history, next_name)
            stepped = x + (next_sigma - sigma) * (velocity + after) / 2
        x = stepped
    return x


class Rollout:
    """A stream that grows block by block: `generate`, then `commit`, in turn.

    gradient: whether blocks that are generated now carry gradients, for training with a page cache. A block's gradient reaches
    earlier blocks through their pages (`CausalSpec.context_gradient`), and never through pictures.
    """

    def __init__(
        self,
        world: World,
        codec: Codec,
        spec: CausalSpec,
        start: StreamStart,
        seed: int | Sequence[int] = 0,
        cache: Cache | None = None,
        passes: Passes = EAGER,
        keeps_text: bool = False,
        decoder: StreamDecoder | None = None,
    ) -> None:
        """seed: of the batch, or one for each sample. cache: an empty one; None: pages. passes: how its passes are computed.

        keeps_text: compute keys of the text and scales of the steps once (`PreparedText`), not in every pass; for play.
        decoder: of this stream; None: the codec's. The start image is committed here.
        """
        require_frame_latents(codec, spec)
        self.gradient = False
        self._world, self._codec, self._spec, self._seed, self._passes = world, codec, spec, seed, passes
        self._camera_known = start.camera_known
        self._text, self._vlm_context = start.text, start.vlm_context
        self._prepared_text = PreparedText(world, start.text) if keeps_text else None
        self._intrinsics = start.intrinsics
        height, width = start.pictures.shape[-2:]
        self._size = height // codec.cell_px, width // codec.cell_px
        grid = TokenGrid.of(world.high.expert, *self._size)
        self._cache: Cache = PageCache(spec, grid) if cache is None else cache
        batch, device = len(start.pictures), start.pictures.device
        self._origin = torch.eye(4, device=device).expand(batch, 4, 4)
        self._pose = self._origin  # of the last frame
        self._first_frame: FirstFrameStream | None = None if spec.warp else codec.first_frame_stream(start.pictures)
        self._memories: list[Memory] = [
            KeyFrameMemory() if spec.memory == "keyframes" else RecentMemory() for _ in range(batch if spec.warp else 0)
        ]
        # What the last blocks were made of, to commit them again with another text.
        kept = 1 if spec.recache == "block" else spec.window // spec.block
        self._made: deque[tuple[Tensor, BlockCondition]] = deque(maxlen=kept)
        self.latents = 0  # how many are committed
        self._picture = start.pictures  # last frame, with exactly its latents
        self._decoder = codec.stream_decoder() if decoder is None else decoder
        self._decoded: Tensor | Future[Tensor] | None = None  # frames of the pending block
        with torch.no_grad():
            x0 = codec.encode(start.pictures[:, :, None])
            first = prepare(world, self._condition(range(1), self._origin[:, None], None), self._prepared_text)
            self._pending: tuple[Tensor, PreparedBlock] | None = (x0, first)
            self.first_frame = self.decode()  # the start image as the world shows it, [B, 3, 1, H, W]
            self.commit()

    @property
    def next_block(self) -> range:
        """Latents of the block that `generate` makes next."""
        return self._spec.block_of(self.latents)

    @property
    def block_frames(self) -> int:
        """Frames of a block."""
        return self._spec.block * self._codec.frames_per_latent

    @property
    def picture(self) -> Tensor:
        """The last frame that is committed, [B, 3, H, W]: with `CausalSpec.warp` the one that is turned for the next block."""
        return self._picture

    def generate(self, pose_BF44: Tensor, exit_step: int | None = None) -> Tensor:
        """Return the latents [B, C, T, h, w] of the next block. pose: cameras of its frames, relative to the first frame.

        exit_step: see `sample_block`.
        """
        block = self.next_block
        with torch.set_grad_enabled(self.gradient):
            prepared = self._prepared(block, pose_BF44)
            generator = self._generators(self._seed, block)
            history = self._cache.history(block)
            x0 = sample_block(self._world, prepared, history, self._spec, generator, self._passes, exit_step)
        self._pending, self._pose = (x0, prepared), pose_BF44[:, -1]
        return x0

    @torch.no_grad()
    def give(self, x0_BCThw: Tensor, pose_BF44: Tensor) -> None:
        """Take known latents as the next block instead of generating it: teacher forcing. Then commit it."""
        prepared = self._prepared(self.next_block, pose_BF44)
        self._pending, self._pose = (x0_BCThw, prepared), pose_BF44[:, -1]

    def _prepared(self, block: range, pose_BF44: Tensor) -> PreparedBlock:
        if self._pending is not None:
            raise RuntimeError("the last block is not committed yet")
        return prepare(self._world, self._condition(block, pose_BF44, self._pose), self._prepared_text)

    @staticmethod
    def _generators(seed: int | Sequence[int], block: range) -> torch.Generator | list[torch.Generator]:
        """Return the generator of a block's noise, or one for each sample: it follows from the seed and the block."""
        if isinstance(seed, int):
            return seeded_generator(seed, block.start)
        return [seeded_generator(each, block.start) for each in seed]

    @torch.no_grad()
    def decode(self) -> Tensor:
        """Return the frames [B, 3, F, H, W] of the block that is generated and not committed yet, in [-1, 1]."""
        if self._pending is None:
            raise RuntimeError("there is no block to decode")
        if self._decoded is None:
            self._decoded = self._decoder.decode(self._pending[0])
        elif isinstance(self._decoded, Future):
            self._decoded = self._decoded.result()
        return self._decoded

    def decode_in(self, submit: Callable[[Callable[[Tensor], Tensor], Tensor], "Future[Tensor]"]) -> "Future[Tensor]":
        """Have the block that is generated decoded elsewhere, and return its frames to come. Call it before `commit`.

        submit: runs a decoding of latents after those given before (`accelerate.overlap`). With `CausalSpec.warp` the commit
        waits for the frames, since the next block is conditioned on the last of them.
        """
        if self._pending is None or self._decoded is not None:
            raise RuntimeError("there is no block to decode, or it is decoded already")
        future = submit(self._decoder.decode, self._pending[0])
        self._decoded = future
        return future

    def commit(self) -> None:
        """Enter the last block into the cache, and its last frame into the memory."""
        if self._pending is None:
            raise RuntimeError("there is no block to commit")
        x0, prepared = self._pending
        if self.latents and self._spec.warp:
            assert isinstance(self._codec, FrameCodec)
            with torch.no_grad():
                self._picture = self._codec.project(self.decode()[:, :, -1], x0[:, :, -1])
        self._decoded = None
        self._commit(x0, prepared)
        self._made.append((x0, prepared.block))
        self.latents, self._pending = prepared.block.latents.stop, None
        frame, pose_B44 = self.latents - 1, self._pose.cpu()  # memories compare poses on the processor
        for memory, picture, pose in zip(self._memories, self._picture, pose_B44, strict=False):
            memory.add(frame, picture, pose)

    def extend(self, pose_BF44: Tensor) -> Tensor:
        """Generate, decode and commit as many blocks as there are cameras for; return their frames [B, 3, F, H, W]."""
        frames = []
        for start in range(0, pose_BF44.shape[1] - self.block_frames + 1, self.block_frames):
            self.generate(pose_BF44[:, start : start + self.block_frames])
            frames.append(self.decode())
            self.commit()
        return torch.cat(frames, 2)

    def set_text(self, text: Tensor, vlm_context: Tensor | None = None) -> None:
        """Change the text from the next block on, and commit what `CausalSpec.recache` names again with it.

        With the same text the cache stays as it is. text: [B, S, E].
        """
        same_context = vlm_context is self._vlm_context or (
            vlm_context is not None and self._vlm_context is not None and torch.equal(vlm_context, self._vlm_context)
        )
        if torch.equal(text, self._text) and same_context:
            return
        changed_B = torch.ones(len(text), dtype=torch.bool) if not same_context else (text != self._text).flatten(1).any(1)
        self._text, self._vlm_context = text, vlm_context
        if self._prepared_text is not None:
            self._prepared_text = PreparedText(self._world, text)
        for memory, has_changed in zip(self._memories, changed_B.tolist(), strict=False):
            if has_changed:
                memory.forget()
        first = self._made[0][1].latents.start if self._spec.recache == "window" else 0
        for x0, block in self._made:
            if block.latents.start or len(self._made) == 1:  # the start image keeps its text once a block has followed
                changed = block._replace(text=text, vlm_context=vlm_context)
                with torch.set_grad_enabled(self.gradient and self._spec.context_gradient):
                    prepared = prepare(self._world, changed, self._prepared_text)
                self._commit(x0, prepared, first)

    def _commit(self, x0: Tensor, prepared: PreparedBlock, first: int = 0) -> None:
        block, noise = prepared.block.latents, None
        if self._spec.context_noise:
            seed = self._seed + 1 if isinstance(self._seed, int) else [each + 1 for each in self._seed]
            noise = draw_noise(x0.shape, self._generators(seed, block)).to(x0.device)
        with torch.set_grad_enabled(self.gradient and self._spec.context_gradient):
            page = self._passes.commit(self._world, x0, prepared, self._cache.history(block, first), self._spec, noise)
        self._cache = self._cache.with_page(page)

    def _condition(self, block: range, pose_BF44: Tensor, before_B44: Tensor | None) -> BlockCondition:
        intrinsics = self._intrinsics[:, None].expand(-1, pose_BF44.shape[1], -1)
        maps = camera_maps(self._spec, self._codec, pose_BF44, intrinsics, self._size, self._origin, before_B44)
        if self._camera_known is not None:
            maps = maps * self._camera_known.view(-1, 1, 1, 1, 1)
        if self._first_frame is not None:
            channels = self._first_frame.condition(len(block), block.start)
        elif block.start == 0:
            count = condition_channels(self._spec.warp_sources, self._world.high.expert.config.out_channels)
            channels = torch.zeros(len(pose_BF44), count, 1, *self._size, device=pose_BF44.device)
        else:
            channels = self._turned(block, pose_BF44, intrinsics)
        return BlockCondition(block, channels, self._text, maps, self._vlm_context)

    def _turned(self, block: range, pose_BF44: Tensor, intrinsics: Tensor) -> Tensor:
        """Return the turned pictures of a block: of the last frame, and of a remembered one."""
        frames = len(block)
        before = TurnedSource(
            self._picture[:, None].expand(-1, frames, -1, -1, -1), self._pose[:, None].expand(-1, frames, -1, -1)
        )
        chosen = [
            [memory.choose(block.start + i, pose[i]) for i in range(frames)]
            for memory, pose in zip(self._memories, pose_BF44.cpu(), strict=True)
        ]
        pictures = torch.stack([torch.stack([picture for picture, _ in row]) for row in chosen])
        poses = torch.stack([torch.stack([pose for _, pose in row]) for row in chosen]).to(pose_BF44)
        noise = self._spec.warp_noise
        sources = [(before, None, noise), (TurnedSource(pictures, poses), None, 0.0)]
        remembered = sources[1][0] if self._spec.memory == "keyframes" else None
        turned = turned_condition(self._codec, sources, pose_BF44, intrinsics, remembered)
        return turned if self._camera_known is None else turned * self._camera_known.view(-1, 1, 1, 1, 1)
