"""What cameras and files do to a picture: a round field of view, few pixels, noise, JPEG.

Each function changes n images of H x W pixels, float32 (n, 3, H, W) in 0..1 on any device, by
numbers of their own, float64 (n,) on the CPU.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# ITU-T T.81, tables K.1 and K.2: how coarsely JPEG rounds at quality 50.
LUMINANCE = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99),
    *(24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99),
    *(99,) * 32,
)
TO_YCBCR = (  # ITU-T T.871; of R, G, B in 0..255, Cb and Cr around 0
    (0.299, 0.587, 0.114),
    (-0.168736, -0.331264, 0.5),
    (0.5, -0.418688, -0.081312),
)


def narrow(images: Tensor, radius: Tensor, shift: Tensor, shade: Tensor) -> Tensor:
    """Hide what a round field of view hides, and darken towards its edge.

    Args:
        images: see above.
        radius: of the field, fraction of half the diagonal.
        shift: (n, 2), its center from the image's, x and y, fraction of the sides.
        shade: by how much its edge is darker than its center, fraction.
    """
    height, width = images.shape[2:]
    reach = radius * math.hypot(height, width) / 2  # pixels
    center = (shift + 0.5) * torch.tensor([width, height])
    reach, center, shade = (values.to(images) for values in (reach, center, shade))
    x, y = (torch.arange(side, device=images.device) + 0.5 for side in (width, height))
    across, down = x - center[:, :1], y - center[:, 1:]  # (n, W), (n, H)
    distance = (across[:, None] ** 2 + down[:, :, None] ** 2).sqrt()  # (n, H, W)
    reach = reach[:, None, None]
    inside = (reach - distance + 0.5).clamp(0, 1)  # an edge one pixel wide
    light = inside * (1 - shade[:, None, None] * (distance / reach) ** 2)
    return images * light[:, None]


def coarsen(images: Tensor, fraction: Tensor) -> Tensor:
    """Keep a fraction of the pixels of each side, as a camera or a file with fewer has."""
    size = images.shape[2:]
    coarse = []
    for image, kept in zip(torch.split(images, 1), fraction.tolist(), strict=True):
        small = [max(1, round(side * kept)) for side in size]
        few = F.interpolate(image, small, mode="bilinear", antialias=True)
        coarse.append(F.interpolate(few, size, mode="bilinear"))
    return torch.cat(coarse)


def add_noise(images: Tensor, deviation: Tensor, seeds: Tensor) -> Tensor:
    """Add Gaussian noise of a standard deviation, from a seed in 0..1 of each image's own."""
    noise = torch.stack(
        [
            torch.randn(
                images.shape[1:], generator=torch.Generator().manual_seed(int(seed * 2**53))
            )
            for seed in seeds.tolist()
        ]
    )
    return images + (noise * deviation[:, None, None, None]).to(images)


def compress(images: Tensor, quality: Tensor) -> Tensor:
    """Round as JPEG does at a quality from 1 to 100, with chroma at half the resolution."""
    height, width = images.shape[2:]
    to_ycbcr = torch.tensor(TO_YCBCR, dtype=torch.float64)
    to_rgb = torch.linalg.inv(to_ycbcr).to(images)
    down, right = -height % 16, -width % 16
    padded = F.pad(images, (0, right, 0, down), mode="replicate") * 255
    planes = torch.einsum("pc,nchw->nphw", to_ycbcr.to(images), padded)
    # libjpeg's scale of the tables, in percent
    percent = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    tables = torch.tensor([LUMINANCE, CHROMINANCE], dtype=torch.float64).view(2, 8, 8)
    tables = ((tables * percent[:, None, None, None] + 50) / 100).floor().clamp(1, 255)
    tables = tables.to(images)  # (n, 2, 8, 8)
    luma = _round_blocks(planes[:, :1] - 128, tables[:, :1]) + 128
    chroma = _round_blocks(F.avg_pool2d(planes[:, 1:], 2), tables[:, 1:])
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear")
    rgb = torch.einsum("cp,nphw->nchw", to_rgb, torch.cat([luma, chroma], 1)) / 255
    return rgb[:, :, :height, :width].clamp(0, 1)


def _round_blocks(planes: Tensor, tables: Tensor) -> Tensor:
    """Round the cosine transform of 8 x 8 blocks: (n, P, H, W) by (n, 1, 8, 8) -> the same."""
    steps = torch.arange(8, dtype=torch.float64)
    cosines = torch.cos((2 * steps + 1) * steps[:, None] * math.pi / 16) / 2
    cosines[0] /= math.sqrt(2)
    basis = cosines.to(planes)  # (8, 8), orthonormal
    num, count, height, width = planes.shape
    blocks = planes.view(num, count, height // 8, 8, width // 8, 8).transpose(3, 4)
    tables = tables[:, :, None, None]
    rounded = (basis @ blocks @ basis.T / tables).round() * tables
    return (basis.T @ rounded @ basis).transpose(3, 4).reshape(planes.shape)
