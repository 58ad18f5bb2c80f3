"""What happens to good photographs on their way, image to image: nothing of it should matter.

The opposite of `dermalyze.data.corruptions`.
"""

from PIL import Image, ImageOps

from dermalyze.data.corruptions import saved

HARMLESS = {
    "as it is": lambda image: image,
    "mirrored": ImageOps.mirror,
    "turned by 90 degrees": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "turned by 10 degrees, middle 80 %": lambda image: _middle(
        image.rotate(10, Image.Resampling.BICUBIC), 0.8
    ),
    "middle 90 %": lambda image: _middle(image, 0.9),
    "middle 80 %": lambda image: _middle(image, 0.8),
    "saved again as JPEG 90": lambda image: saved(image, 90),
    "saved again as JPEG 75": lambda image: saved(image, 75),
    "enlarged 3 times": lambda image: ImageOps.scale(image, 3),
    "shrunk to 75 %": lambda image: ImageOps.scale(image, 0.75),
    "8 % darker": lambda image: image.point(lambda level: level * 0.92),
    "8 levels brighter": lambda image: image.point(lambda level: level + 8),
}


def _middle(image, share):
    width, height = image.size
    left, top = width * (1 - share) / 2, height * (1 - share) / 2
    return image.crop((round(left), round(top), round(width - left), round(height - top)))
