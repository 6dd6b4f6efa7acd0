"""As much of torch as workers touch themselves, on numpy.

A tensor knows its device and, as the real one, gives no array away while it is on a GPU.
"""

from __future__ import annotations

import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

float16, float32, float64 = np.float16, np.float32, np.float64
int32, int64, uint8 = np.int32, np.int64, np.uint8


class device:
    """Also a context, in which new tensors would be on it; `from_numpy` does not heed that."""

    def __init__(self, name: Any) -> None:
        self.type, _, self.index = str(name).partition(":")

    def __enter__(self) -> device:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __str__(self) -> str:
        return self.type + (f":{self.index}" if self.index else "")


class Tensor:
    def __init__(self, array: Any, on: str = "cpu") -> None:
        self.array = np.asarray(array)
        self.on = on

    def like(self, array: Any) -> Tensor:
        return Tensor(array, self.on)

    def to(self, *where: Any, **options: Any) -> Tensor:
        made = self
        for wanted in (*where, *options.values()):
            if isinstance(wanted, (str, device)):
                made = Tensor(made.array, str(wanted).partition(":")[0])
            elif isinstance(wanted, type):
                made = made.like(made.array.astype(wanted))
        return made

    def cpu(self) -> Tensor:
        return Tensor(self.array)

    def cuda(self) -> Tensor:
        return Tensor(self.array, "cuda")

    def numpy(self) -> np.ndarray:
        if self.on != "cpu":
            raise TypeError(f"can't convert {self.on}:0 device type tensor to numpy")
        return self.array

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        return self.numpy()

    @property
    def device(self) -> device:
        return device(self.on)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> Any:
        return self.array.dtype.type

    def float(self) -> Tensor:
        return self.like(self.array.astype(np.float32))

    def half(self) -> Tensor:
        return self.like(self.array.astype(np.float16))

    def long(self) -> Tensor:
        return self.like(self.array.astype(np.int64))

    def detach(self) -> Tensor:
        return self

    contiguous = clone = detach

    def permute(self, *order: int) -> Tensor:
        return self.like(self.array.transpose(*order))

    def squeeze(self, *axis: int) -> Tensor:
        return self.like(self.array.squeeze(*axis))

    def unsqueeze(self, axis: int) -> Tensor:
        return self.like(np.expand_dims(self.array, axis))

    def reshape(self, *shape: int) -> Tensor:
        return self.like(self.array.reshape(*shape))

    def tolist(self) -> Any:
        return self.array.tolist()

    def item(self) -> Any:
        return self.array.item()

    def __getitem__(self, key: Any) -> Tensor:
        return self.like(self.array[key])

    def __len__(self) -> int:
        return len(self.array)

    def __matmul__(self, other: Tensor) -> Tensor:
        assert self.on == other.on
        return self.like(self.array @ other.array)

    def __mul__(self, other: Any) -> Tensor:
        return self.like(self.array * (other.array if isinstance(other, Tensor) else other))

    def __add__(self, other: Any) -> Tensor:
        return self.like(self.array + (other.array if isinstance(other, Tensor) else other))

    def clamp(self, low: float, high: float) -> Tensor:
        return self.like(self.array.clip(low, high))


def from_numpy(array: np.ndarray) -> Tensor:
    return Tensor(array)


def tensor(values: Any, dtype: Any = None, device: Any = "cpu") -> Tensor:
    return Tensor(np.asarray(values, dtype), str(device).partition(":")[0])


def cat(tensors: list[Tensor], dim: int = 0) -> Tensor:
    return tensors[0].like(np.concatenate([one.array for one in tensors], dim))


def load(file: Any, map_location: Any = "cpu", *, mmap: bool = False, weights_only: bool = False):
    """What was pickled, with tensors for its arrays; on no GPU unless that is asked for."""
    assert str(map_location) == "cpu", "tensors would go where they were when they were saved"
    return with_tensors(pickle.loads(Path(file).read_bytes()))


def with_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: with_tensors(part) for name, part in value.items()}
    return Tensor(value) if isinstance(value, np.ndarray) else value


class Seeds:
    """The states of the generators: what is drawn after the same state is the same."""

    cpu = np.zeros(16, np.uint8)
    gpu = np.zeros(16, np.uint8)


def manual_seed(seed: int) -> None:
    Seeds.cpu = np.frombuffer(int(seed).to_bytes(16, "little"), np.uint8).copy()
    Seeds.gpu = Seeds.cpu.copy()


def get_rng_state() -> Tensor:
    return Tensor(Seeds.cpu.copy())


def set_rng_state(state: Tensor) -> None:
    Seeds.cpu = state.numpy().astype(np.uint8)


def draw(*shape: int) -> Tensor:
    """For answers: numbers from the GPU's generator, which moves on."""
    numbers = np.random.default_rng(int.from_bytes(Seeds.gpu.tobytes(), "little")).random(shape)
    Seeds.gpu = Seeds.gpu.copy()
    Seeds.gpu[-1] += 1
    return Tensor(numbers.astype(np.float32), "cuda")


class Generator:
    def __init__(self, device: Any = "cpu") -> None:
        self.device, self.seed = device, 0

    def manual_seed(self, seed: int) -> Generator:
        self.seed = seed
        return self


class Nothing:
    """A context or decorator without effect: `no_grad`, `inference_mode`, `autocast`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __enter__(self) -> Nothing:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __call__(self, function: Any) -> Any:
        return function


no_grad = inference_mode = autocast = Nothing


class OutOfMemoryError(RuntimeError):
    pass


cuda: Any = types.ModuleType("torch.cuda")
cuda.OutOfMemoryError = OutOfMemoryError
cuda.is_available = lambda: True
cuda.is_initialized = lambda: False
cuda.device_count = lambda: 1
cuda.current_device = lambda: 0
cuda.get_device_name = lambda device=None: "NVIDIA A40"
cuda.get_rng_state = lambda device="cuda": Tensor(Seeds.gpu.copy())
cuda.set_rng_state = lambda state, device="cuda": setattr(Seeds, "gpu", state.numpy())
cuda.empty_cache = cuda.synchronize = cuda.ipc_collect = lambda *args: None
sys.modules["torch.cuda"] = cuda


def load_hub(repo_or_dir: str, model: str, *args: Any, source: str = "github", **options: Any):
    """`torch.hub.load`, which asks GitHub unless the source is a folder."""
    if source != "local":
        raise OSError("HTTP Error 403: rate limit exceeded")
    return repo_or_dir, model, options


hub: Any = types.ModuleType("torch.hub")
hub.load = load_hub
sys.modules["torch.hub"] = hub
