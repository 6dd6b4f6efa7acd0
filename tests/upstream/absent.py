"""What stands for packages that have no build without a GPU, so that upstream's modules import.

Whatever is taken from such a package can be named, inherited from and made; using it says what is
missing. torchvision alone gets the few functions that upstream's transforms need, on torch.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterable
from typing import Any


class Absent:
    """May be made, as modules do when they are imported, and not be used."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"{type(self).__module__} is not installed here ({name})")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{type(self).__module__} is not installed here")


class AbsentModule(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Absent,), {"__module__": self.__name__})


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names: Iterable[str]) -> None:
        self.names = set(names)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] not in self.names:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        return AbsentModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def stand_in(*names: str) -> list[str]:
    """Stands in for those of the packages that cannot be found here; which these were."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    sys.meta_path.insert(0, Finder(missing))
    return missing


def hide(*names: str) -> None:
    """Stands in for packages that are here but need one that is not."""
    sys.meta_path.insert(0, Finder(names))


def stand_in_torchvision() -> None:
    """`crop` and `resize` of tensors, `Compose`, `Resize`, `Normalize` and `ToTensor`; other names
    are absent. Import before it what only asks whether torchvision is there."""
    import torch

    def crop(image: Any, top: int, left: int, height: int, width: int) -> Any:
        """As torchvision's: zeros where the box leaves the picture."""
        rows, columns = image.shape[-2:]
        part = image[..., max(top, 0) : top + height, max(left, 0) : left + width]
        pad = (max(-left, 0), max(left + width - columns, 0))
        return torch.nn.functional.pad(part, (*pad, max(-top, 0), max(top + height - rows, 0)))

    def resize(image: Any, size: Any, interpolation: Any = "bilinear", **_: Any) -> Any:
        shape = [size, size] if isinstance(size, int) else list(size)
        mode = "nearest" if interpolation in (0, "nearest") else str(interpolation)
        smooth = {} if mode == "nearest" else {"antialias": True, "align_corners": False}
        batch = image if image.dim() == 4 else image[None]
        made = torch.nn.functional.interpolate(batch, shape, mode=mode, **smooth)
        return made if image.dim() == 4 else made[0]

    class Compose:
        def __init__(self, transforms: Any) -> None:
            self.transforms = transforms

        def __call__(self, value: Any) -> Any:
            for transform in self.transforms:
                value = transform(value)
            return value

    class Resize:
        def __init__(self, size: Any, interpolation: Any = "bilinear", **_: Any) -> None:
            self.how = (size, interpolation)

        def __call__(self, image: Any) -> Any:
            return resize(image, *self.how)

    class Normalize:
        def __init__(self, mean: Any, std: Any, inplace: bool = False) -> None:
            self.mean, self.std = (torch.tensor(part).reshape(-1, 1, 1) for part in (mean, std))

        def __call__(self, image: Any) -> Any:
            return (image - self.mean) / self.std

    class ToTensor:
        def __call__(self, picture: Any) -> Any:
            """Of an 8-bit picture: (channels, height, width), 0 to 1."""
            pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
            whole = pixels.reshape(picture.height, picture.width, len(picture.getbands()))
            return whole.permute(2, 0, 1).to(torch.float32).div(255)

    class InterpolationMode:
        NEAREST, BILINEAR, BICUBIC = "nearest", "bilinear", "bicubic"
        BOX, HAMMING, LANCZOS = "box", "hamming", "lanczos"

    functional = AbsentModule("torchvision.transforms.functional")
    vars(functional).update(crop=crop, resize=resize, InterpolationMode=InterpolationMode)
    transforms = AbsentModule("torchvision.transforms")
    made = (Compose, Resize, Normalize, ToTensor, InterpolationMode)
    vars(transforms).update(functional=functional, **{one.__name__: one for one in made})
    torchvision: Any = AbsentModule("torchvision")
    torchvision.transforms, torchvision.__path__ = transforms, []
    for module in (torchvision, transforms, functional):
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None, is_package=True)
        sys.modules[module.__name__] = module
    transforms.__path__ = []  # type: ignore[attr-defined]
    hide("torchvision")  # what is below it
