"""Finds the one object in a photograph: an alpha channel that is opaque where it is."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import cv2
import numpy as np

from .pictures import BadInput, shrink

COLOUR_SIZE = 224  # most pixels on the longer side: of the picture in which colours are told apart,
EDGE_SIZE = 512  # and of the one in which the edge is refined


def load_rembg():
    """rembg's u2net where the package and its weights are present; this never downloads."""
    files = os.getenv("U2NET_HOME", "~/.u2net"), os.getenv("REMBG_HOME", "~/.rembg/models/u2net")
    files = [path for home in files if (path := Path(home, "u2net.onnx").expanduser()).is_file()]
    if not files or importlib.util.find_spec("rembg") is None:
        return None
    import rembg
    from PIL import Image

    session = rembg.new_session("u2net_custom", model_path=str(files[0]))
    return lambda colour: np.array(session.predict(Image.fromarray(colour[..., ::-1]))[0])


def find_object(colour: np.ndarray) -> np.ndarray:
    """Alpha (uint8) of what differs from the picture's border, by GrabCut (Rother et al. 2004)."""
    small = shrink(colour, COLOUR_SIZE)
    unlike, threshold, labels = compare_with_border(small)
    mask = labels == cv2.GC_PR_FGD
    if mask.mean() > 0.002:
        cv2.setRNGSeed(0)
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(small, labels, None, *models, 2, cv2.GC_INIT_WITH_MASK)
        mask = fill_holes(labels & 1, unlike, threshold)
    if not 0.002 < mask.mean() < 0.98:
        raise BadInput(
            "No object was found: nothing stands out from the colours at the picture's border.",
            "Use a picture of one object before a plain background of another colour, "
            "or a PNG with a transparent background, or send a `mask`.",
        )
    return refine_edge(colour, mask)


def compare_with_border(small: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """How unlike the background each pixel is, the threshold of that, and GrabCut's first labels.

    The border's colours are clustered, and compared in standard deviations of the nearest cluster.
    A cluster commoner in the middle than at the border belongs to an object that the picture cuts
    off: it is no background.
    """
    clusters, (height, width) = 6, small.shape[:2]
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_BGR2LAB)
    rim = max(2, min(height, width) // 40)
    border, middle = np.ones((height, width), bool), np.zeros((height, width), bool)
    border[rim:-rim, rim:-rim] = False
    middle[height // 4 : -height // 4, width // 4 : -width // 4] = True

    cv2.setRNGSeed(0)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    _, of, centres = cv2.kmeans(lab[border], clusters, None, stop, 2, cv2.KMEANS_PP_CENTERS)
    distances = np.empty((clusters, height, width), np.float32)
    for i, centre in enumerate(centres):
        members = lab[border][of[:, 0] == i] - centre
        spread = members.T @ members / max(len(members), 1) + 9 * np.eye(3)
        whiten = np.linalg.inv(np.linalg.cholesky(spread)).T.astype(np.float32)
        distances[i] = np.linalg.norm((lab - centre) @ whiten, axis=2)

    nearest, close = distances.argmin(0), distances.min(0) < 3
    in_border, in_middle = (
        np.bincount(nearest[region & close], minlength=clusters) / region.sum()
        for region in (border, middle)
    )
    background = in_middle < 1.3 * in_border
    unlike = distances[background].min(0) if background.any() else distances.min(0)
    levels = np.clip(unlike * 20, 0, 255).astype(np.uint8)
    threshold = np.clip(cv2.threshold(levels, 0, 255, cv2.THRESH_OTSU)[0] / 20, 2, 5)
    labels = np.where(unlike > threshold, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[border & (unlike <= threshold)] = cv2.GC_BGD
    return unlike, float(threshold), labels


def fill_holes(mask: np.ndarray, unlike: np.ndarray, threshold: float) -> np.ndarray:
    """`mask` without its small holes and those in which no background is seen."""
    _, holes = cv2.connectedComponents((mask == 0).astype(np.uint8), connectivity=4)
    area = np.bincount(holes.ravel())
    looks = np.bincount(holes.ravel(), np.minimum(unlike, 2 * threshold).ravel())
    fill = (area < 0.01 * mask.sum()) | (looks > 0.7 * threshold * area)
    fill[np.concatenate([holes[0], holes[-1], holes[:, 0], holes[:, -1]])] = False
    return np.where(fill[holes], 1, mask).astype(np.uint8)


def refine_edge(colour: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Alpha whose edge follows the picture's, from a coarse mask, by a guided filter (He 2010).

    The guide is the one mixture of the channels in which inside and outside differ most.
    """
    small = shrink(colour, EDGE_SIZE).astype(np.float32) / 255
    mask = cv2.resize(mask.astype(np.float32), small.shape[1::-1])
    inside, outside = (cv2.mean(small, side.astype(np.uint8)) for side in (mask > 0.5, mask <= 0.5))
    mixture = np.subtract(inside, outside)[None, :3]
    mixture /= np.abs(mixture).sum() + 1e-6
    guide = cv2.transform(small, mixture)
    box = [2 * round(1.5 * EDGE_SIZE / COLOUR_SIZE) + 1] * 2
    mean, mask_mean = cv2.blur(guide, box), cv2.blur(mask, box)
    slope = cv2.blur(guide * mask, box) - mean * mask_mean
    slope /= cv2.blur(guide * guide, box) - mean * mean + 1e-4
    offset = mask_mean - slope * mean
    slope, offset = (cv2.resize(cv2.blur(x, box), colour.shape[1::-1]) for x in (slope, offset))
    alpha = slope * cv2.transform(colour.astype(np.float32), mixture / 255) + offset
    return np.clip(510 * alpha - 127.5, 0, 255).astype(np.uint8)


def drop_specks(alpha: np.ndarray, smallest: float) -> np.ndarray:
    """`alpha` with only those parts that have at least this share of the largest one's area."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats((alpha > 127).astype(np.uint8))
    area = stats[:, cv2.CC_STAT_AREA] * (np.arange(len(stats)) > 0)
    kept = (area >= max(smallest * area.max(), 1))[parts].astype(np.uint8)
    return cv2.bitwise_and(alpha, alpha, mask=cv2.dilate(kept, np.ones((3, 3), np.uint8)))
