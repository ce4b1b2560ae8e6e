"""Switch a world's accelerations on, in the one order that works, and give each session what it needs of them."""

from collections.abc import Callable

from torch.distributed.device_mesh import DeviceMesh

from curation.errors import InputError
from model.accelerate import attention, fp8
from model.accelerate.backends import Backend, choose
from model.accelerate.fp8_cache import Fp8RingCache
from model.accelerate.graphs import CudaGraphRecorder, GraphedPasses
from model.accelerate.overlap import DecodeThread
from model.accelerate.spec import AccelerateSpec
from model.accelerate.split_decode import SplitWanDecoder
from model.backbone.stream_decoders import StreamDecoder
from model.backbone.vae import Codec, VideoCodec
from model.causal.cache import RingCache, TokenGrid
from model.causal.passes import BlockCondition, Passes
from model.causal.rollout import EAGER
from model.causal.spec import CausalSpec
from model.parallel import context_parallel
from model.parallel.recompute import compile_steady_blocks
from model.world import World


def no_log(_: str) -> None:
    """Discard messages."""


class Accelerator:
    """A world whose switches are on. The world is changed in place; its sessions share it."""

    def __init__(
        self,
        world: World,
        causal: CausalSpec,
        spec: AccelerateSpec,
        mesh: DeviceMesh | None = None,
        log: Callable[[str], None] = no_log,
    ) -> None:
        """mesh: the ranks that share each session, where `spec.sequence_parallel` is more than one.

        InputError for a switch that cannot be on here, with the reason.
        """
        self.world, self.causal, self.spec, self.mesh = world, causal, spec, mesh
        self.device = next(world.parameters()).device
        self.backend = Backend("eager", EAGER)
        try:
            self._apply(log)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"--accelerate: {error}") from error

    def _apply(self, log: Callable[[str], None]) -> None:
        spec = self.spec
        ranks = self.mesh.size() if self.mesh else 1
        if spec.sequence_parallel != ranks:
            wanted = f"sequence_parallel={spec.sequence_parallel}"
            raise ValueError(f"{wanted} needs as many ranks, not {ranks}: start it by torchrun")
        if spec.cuda_graphs and self.device.type != "cuda":
            raise RuntimeError("cuda_graphs needs a GPU")
        function = attention.kernel(spec.attention, self.device)
        for controlled in {self.world.high, self.world.low}:
            expert = controlled.expert
            if spec.weights == "fp8":
                count, backend = fp8.convert(expert, spec.fp8_backend)
                log(f"fp8: {count} layers by {'torchao' if backend == 'torchao' else 'our own code'}")
            if spec.attention != "sdpa":
                attention.use(expert, function)
            if self.mesh is not None and ranks > 1:
                context_parallel.parallelize(expert, self.mesh)
            if spec.compile:
                compile_steady_blocks(expert, spec.compile_backend)

    def choose_backend(self, block: BlockCondition, exports: str | None = None) -> None:
        """Choose how a small world runs on a processor (`backends.choose`). InputError for one that cannot run here."""
        if self.spec.computes_passes:
            return
        try:
            self.backend = choose(self.world, self.causal, block, self.spec.backend, exports)
        except (RuntimeError, ValueError) as error:
            raise InputError(str(error)) from error

    def cache(self, grid: TokenGrid, batch: int = 1) -> RingCache:
        """Return the cache of a new session."""
        static = self.backend.name in ("traced", "onnxruntime")
        if self.spec.cache == "fp8":
            compiled = self.spec.compile and self.device.type == "cuda"
            return Fp8RingCache(self.causal, grid, self.world, batch, static, compiled)
        return RingCache(self.causal, grid, self.world, batch, static)

    def passes(self) -> Passes:
        """Return how the passes of a new session are computed."""
        if self.spec.cuda_graphs:
            return GraphedPasses(CudaGraphRecorder(self.device)).passes
        if self.spec.attention == "flex":
            return attention.with_block_masks(EAGER)
        return self.backend.passes

    def decoder(self, codec: Codec) -> StreamDecoder:
        """Return the decoder of a new session. InputError for a codec that is not decoded in parts."""
        if self.spec.decode_parts == 1:
            return codec.stream_decoder()
        if not isinstance(codec, VideoCodec) or codec.tiny_decoder is not None:
            raise InputError("--accelerate decode_parts: only Wan's decoder is divided; this world has another codec")
        ranks = self.mesh.size() if self.mesh else 1
        group = self.mesh.get_group() if self.mesh is not None and ranks == self.spec.decode_parts else None
        try:
            return SplitWanDecoder(codec.vae, codec.to_decoder, self.spec.decode_parts, group)
        except ValueError as error:
            raise InputError(f"--accelerate decode_parts: {error}") from error

    def decode_thread(self, decoder: StreamDecoder) -> DecodeThread | None:
        """Return where a new session decodes by its decoder from now on, None for the thread that makes its blocks."""
        if self.spec.decode == "serial":
            return None
        thread = DecodeThread(self.device)
        thread.adopt(decoder)
        return thread
