import standin

standin.fill(globals(), "lib/pymaf/utils/imutils.py")


def remove(data: bytes) -> bytes:
    raise OSError("rembg would load its network anew, and there is none")


class detection:  # torchvision.models.detection
    @staticmethod
    def maskrcnn_resnet50_fpn(pretrained: bool) -> None:
        raise OSError("torchvision would load Mask R-CNN anew")
