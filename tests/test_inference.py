"""The three networks for inference, which have the same interface, and the backbone that calls them."""

import random
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vswin_extract import Backbone, load_model
from vswin_extract.errors import DeviceError
from vswin_extract.network.cpu import CpuSwin
from vswin_extract.network.cuda import CudaSwin
from vswin_extract.network.inference import InferenceNetwork, as_frames, inference_network
from vswin_extract.network.pooling import Pool
from vswin_extract.network.reference import ReferenceSwin
from vswin_extract.network.swin3d import VideoSwin
from vswin_extract.network.threads import single_threaded_workers
from vswin_extract.network.variants import VARIANTS

CPU = torch.device("cpu")
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 59.0, 58.0)
NETWORKS: dict[str, Callable[[VideoSwin, torch.dtype], InferenceNetwork]] = {
    "reference": lambda network, dtype: ReferenceSwin(network, CPU, dtype, MEAN, STD),
    "cpu": lambda network, dtype: CpuSwin(network, dtype, MEAN, STD),
    "cuda": lambda network, dtype: CudaSwin(network, CPU, dtype, MEAN, STD),
}
every_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)


def drawn() -> VideoSwin:
    network = VideoSwin(VARIANTS["nano"], 5).eval()
    network.init_weights(torch.Generator().manual_seed(0))
    return network


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(sum(shape)))


def normalised(clips: Tensor) -> Tensor:
    return ((clips.float() - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 4, 1, 2, 3)


@every_network
@torch.inference_mode()
def test_one_call_computes_every_network(make: Callable[[VideoSwin, torch.dtype], InferenceNetwork]) -> None:
    source, clips = drawn(), pixels(2, 6, 40, 52)
    expected = source(normalised(clips), (2, 4))
    network = make(source, torch.float32)
    found = network(*as_frames(clips), (4, 2))
    assert sorted(found) == [2, 4]
    assert network.device == CPU
    assert network.head is not None
    assert torch.equal(network.head(found[4]), source.head(found[4]))  # type: ignore[misc]
    for stage, x in found.items():
        assert x.dtype == torch.float32
        assert (x - expected[stage]).norm() < 1e-5 * expected[stage].norm()


@pytest.mark.parametrize("shape", [(5, 40, 52), (6, 42, 52)])
@torch.inference_mode()
def test_padded_clips_are_the_same_on_the_processor(shape: tuple[int, ...]) -> None:
    """Clips whose sides are no multiples of a patch; the published network pads them after normalisation."""
    source, clips = drawn(), pixels(1, *shape)
    expected = source(normalised(clips), (4,))[4]
    found = CpuSwin(source, torch.float32, MEAN, STD)(*as_frames(clips), (4,))[4]
    assert (found - expected).norm() < 1e-5 * expected.norm()


@every_network
def test_a_network_leaves_its_source_as_it_is(make: Callable[[VideoSwin, torch.dtype], InferenceNetwork]) -> None:
    source, clips = drawn(), pixels(1, 4, 32, 32)
    before = {name: (value, value.clone(), value.requires_grad) for name, value in source.named_parameters()}
    expected = source(normalised(clips))[4]
    make(source, torch.bfloat16)(*as_frames(clips), (4,))
    after = dict(source.named_parameters())
    assert after.keys() == before.keys()
    for name, (value, copy, requires_grad) in before.items():
        assert after[name] is value
        assert (value.dtype, value.device, value.requires_grad) == (torch.float32, CPU, requires_grad)
        assert torch.equal(value, copy)
    assert torch.equal(source(normalised(clips))[4], expected)


def test_the_processor_has_a_network_of_its_own() -> None:
    network, notes = inference_network(drawn(), CPU, torch.float32, MEAN, STD)
    assert isinstance(network, CpuSwin)
    assert notes == ()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_any_number_of_threads_with_clips_of_any_size(small_weights: Path, precision: str) -> None:
    """Many small calls at once, of clips that differ in size: each gives what it gives alone."""
    model = load_model(small_weights, device="cpu", precision=precision)  # type: ignore[arg-type]
    clips = [pixels(count, 4, side, side + 8) for count in (1, 2) for side in (16, 32, 48)]

    def call(clip: Tensor) -> tuple[Tensor, ...]:
        embedding = model(clip).embedding
        assert embedding is not None
        return embedding, model.network(*as_frames(clip), (1,))[1]

    expected = [call(clip) for clip in clips]

    def work(seed: int) -> None:
        choice = random.Random(seed)
        for _ in range(20):
            number = choice.randrange(len(clips))
            for found, value in zip(call(clips[number]), expected[number], strict=True):
                assert torch.equal(found, value)

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert threads_of_a_new_thread() == torch.get_num_threads() == threads


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_neither_the_batch_nor_the_threads_change_a_bit(small_weights: Path, precision: str) -> None:
    """Embeddings, pooled maps and logits, too, so that a run's bytes do not depend on how batches were filled."""
    model = load_model(small_weights, device="cpu", precision=precision)  # type: ignore[arg-type]
    clips = pixels(7, 4, 32, 40)

    def call(size: int, pool: Pool) -> list[Tensor]:
        each = [model(some, (1, 4), pool, logits=True) for some in torch.split(clips, size)]
        named = ([f.embedding for f in each], [f.logits for f in each], *([f.stages[s] for f in each] for s in (1, 4)))
        return [torch.cat(values) for values in named]  # type: ignore[arg-type]

    before = torch.get_num_threads()
    try:
        for pool in ("space", "all"):
            torch.set_num_threads(1)
            expected = call(1, pool)
            for threads, size in ((1, 7), (2, 3), (3, 1)):
                torch.set_num_threads(threads)
                for found, value in zip(call(size, pool), expected, strict=True):
                    assert torch.equal(found, value), (pool, threads, size)
    finally:
        torch.set_num_threads(before)


def threads_of_a_new_thread() -> int:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


def test_workers_change_the_thread_count_of_no_other_thread() -> None:
    """The counts of this thread, of another one, and of threads to come differ here."""

    def set_count(count: int) -> None:
        torch.get_num_threads()  # a thread takes over the process's count when it is first read, even after it was set
        torch.set_num_threads(count)

    before = torch.get_num_threads()
    with ThreadPoolExecutor(1) as other, ThreadPoolExecutor(1) as last:
        other.submit(set_count, 4).result()
        set_count(3)
        last.submit(set_count, 5).result()
        counts = []
        with single_threaded_workers(4) as workers:
            together = threading.Barrier(4, timeout=60)
            of_workers = list(workers.map(lambda _: (together.wait(), torch.get_num_threads())[1], range(4)))
            counts.append((torch.get_num_threads(), other.submit(torch.get_num_threads).result()))
            new = threads_of_a_new_thread()
        counts.append((torch.get_num_threads(), other.submit(torch.get_num_threads).result()))
    set_count(before)
    assert of_workers == [1, 1, 1, 1]
    assert counts == [(3, 4), (3, 4)]
    assert new == 5


class Compiling:
    """A network that records for which batches it is compiled."""

    device = CPU
    head: nn.Linear | None = None

    def __init__(self, fails: bool) -> None:
        self.fails = fails
        self.compiled: list[int] = []

    def compile_for(self, batch: int) -> None:
        self.compiled.append(batch)

    def __call__(self, frames: Tensor, index: Tensor, stages: Collection[int]) -> dict[int, Tensor]:
        if self.fails:
            raise RuntimeError("no compiler")
        return {stage: torch.zeros(len(index), 1, 1, 1, 8) for stage in stages}


def test_compiling(small_weights: Path) -> None:
    model = load_model(small_weights, device="cpu")
    assert not model.compiles
    with pytest.raises(DeviceError):
        model.compile_for(pixels(4, 4, 32, 32))
    model.limit_batch(2)

    network = Compiling(fails=False)
    model.network = network
    assert model.compiles
    model.limit_batch(2)
    assert network.compiled == []  # it was not compiled
    model.compile_for(pixels(4, 4, 32, 32), stages=(4,))
    for batch in (8, 4, 2, 3):
        model.limit_batch(batch)
    assert network.compiled == [4, 2]

    network = Compiling(fails=True)
    model.network = network
    with pytest.raises(DeviceError, match="--compile off"):
        model.compile_for(pixels(4, 4, 32, 32))
    assert network.compiled == [4, 0]


def test_the_backbone_is_a_plain_callable() -> None:
    """`to` and `state_dict` of a module would cover a part of its parameters only."""
    assert not issubclass(Backbone, nn.Module)
