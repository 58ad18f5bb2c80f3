"""ICC profiles written by hand, and what their colors are in sRGB by the definitions alone.

Chromaticities and curves are those of IEC 61966-2-1 (sRGB), SMPTE EG 432-1 with sRGB's curve
(Display P3) and Adobe RGB (1998).  Never asks a color management system.
"""

import struct

import numpy as np

WHITE_D65 = (0.3127, 0.3290)
D50 = np.array([0.9642, 1.0, 0.8249])  # the white of a profile's connection space
BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
PRIMARIES = {
    "sRGB": ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    "P3": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    "Adobe": ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060)),
}
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)  # of ICC's parametric type 3
ADOBE_GAMMA = 563 / 256


def xyz_of(x, y):
    return np.array([x / y, 1.0, (1 - x - y) / y])


def to_xyz(primaries, white=WHITE_D65):
    """Return the matrix from linear RGB to XYZ under the space's own white, (3, 3)."""
    columns = np.stack([xyz_of(*xy) for xy in PRIMARIES[primaries]], axis=1)
    return columns * np.linalg.solve(columns, xyz_of(*white))


def to_d50(white=WHITE_D65):
    """Return Bradford's adaptation of XYZ from a white to D50."""
    scale = np.diag((BRADFORD @ D50) / (BRADFORD @ xyz_of(*white)))
    return np.linalg.solve(BRADFORD, scale @ BRADFORD)


def linear(values, curve):
    """Undo a curve: a gamma, or the parameters of ICC's type 3; 0..1 -> 0..1."""
    if not isinstance(curve, tuple):
        return values**curve
    g, a, b, c, d = curve
    return np.where(values >= d, (a * values + b) ** g, c * values)


def srgb_levels(values):
    """Turn linear sRGB, clipped to 0..1, into levels 0..255, not rounded."""
    values = np.clip(values, 0, 1)
    return 255 * np.where(values > 0.0031308, 1.055 * values ** (1 / 2.4) - 0.055, 12.92 * values)


def in_srgb(levels, primaries, curve):
    """Levels (..., 3) of a space with a D65 white -> levels of sRGB, not rounded."""
    colors = linear(np.asarray(levels) / 255, curve) @ to_xyz(primaries).T
    return srgb_levels(np.linalg.solve(to_xyz("sRGB"), colors[..., None])[..., 0])


def from_srgb(levels, primaries, curve):
    """Levels (..., 3) of sRGB -> levels of a space with a D65 white, not rounded."""
    colors = linear(np.asarray(levels) / 255, SRGB_CURVE) @ to_xyz("sRGB").T
    values = np.clip(np.linalg.solve(to_xyz(primaries), colors[..., None])[..., 0], 0, 1)
    if isinstance(curve, tuple):
        return srgb_levels(values)
    return 255 * values ** (1 / curve)


def lab_levels(lab):
    """Lab (..., 3) under D50 -> levels of sRGB, not rounded."""
    light = (lab[..., 0] + 16) / 116
    roots = np.stack([light + lab[..., 1] / 500, light, light - lab[..., 2] / 200], axis=-1)
    small = 3 * (6 / 29) ** 2 * (roots - 4 / 29)
    colors = np.where(roots > 6 / 29, roots**3, small) * D50
    matrix = to_d50() @ to_xyz("sRGB")
    return srgb_levels(np.linalg.solve(matrix, colors[..., None])[..., 0])


def fixed(*values):
    """Write numbers as ICC's s15Fixed16."""
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def curve_tag(curve):
    if isinstance(curve, tuple):
        return b"para\0\0\0\0\0\3\0\0" + fixed(*curve)
    if isinstance(curve, np.ndarray):  # a table, 0..1
        table = np.round(65535 * curve).astype(">u2").tobytes()
        return b"curv\0\0\0\0" + struct.pack(">I", len(curve)) + table
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * curve))


def profile_of(space, tags, *, connection=b"XYZ ", version=4, kind=b"mntr"):
    """Put tags, name -> data, behind a header."""
    body, entries = b"", b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        entries += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = struct.pack(
        ">I4sI4s4s4s12x4s4s24x", start + len(body), b"", version << 24, kind, space, connection,
        b"acsp", b"",
    )  # fmt: skip
    header += fixed(*D50)
    header += bytes(128 - len(header))
    return header + struct.pack(">I", len(tags)) + entries + body


def rgb_profile(primaries, curve):
    colorants = (to_d50() @ to_xyz(primaries)).T
    tags = {b"wtpt": b"XYZ \0\0\0\0" + fixed(*D50)}
    for letter, colorant in zip(b"rgb", colorants, strict=True):
        tags[bytes([letter]) + b"XYZ"] = b"XYZ \0\0\0\0" + fixed(*colorant)
        tags[bytes([letter]) + b"TRC"] = curve_tag(curve)
    return profile_of(b"RGB ", tags)


def gray_profile(curve):
    tags = {b"wtpt": b"XYZ \0\0\0\0" + fixed(*D50), b"kTRC": curve_tag(curve)}
    return profile_of(b"GRAY", tags)


def color_table(lab):
    """A table of colors: lab is (grid, ..., 3), L 0..100, a and b in -128..127."""
    channels, grid = lab.ndim - 1, len(lab)
    values = lab / [100, 1, 1] * [65280, 256, 256] + [0, 32768, 32768]  # ICC version 2
    straight = np.array([0, 65535], ">u2").tobytes()
    data = b"mft2\0\0\0\0" + bytes([channels, 3, grid, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    data += struct.pack(">HH", 2, 2) + straight * channels
    return data + np.clip(np.round(values), 0, 65535).astype(">u2").tobytes() + straight * 3


def table_profile(space, lab, second=None):
    """A profile whose colors are a table, with another one for a second intent."""
    tags = {b"wtpt": b"XYZ \0\0\0\0" + fixed(*D50), b"A2B0": color_table(lab)}
    if second is not None:
        tags[b"A2B1"] = color_table(second)
    return profile_of(space, tags, connection=b"Lab ", version=2, kind=b"prtr")


P3 = rgb_profile("P3", SRGB_CURVE)
ADOBE = rgb_profile("Adobe", ADOBE_GAMMA)
SRGB = rgb_profile("sRGB", SRGB_CURVE)


def inks():
    """Lab of all mixtures of inks, five steps each: light falls off with each, hues are made up."""
    c, m, y, k = np.meshgrid(*[np.linspace(0, 1, 5)] * 4, indexing="ij")
    light = 100 - 20 * c - 25 * m - 5 * y - 40 * k
    return np.stack([light, (20 * m - 15 * c) * (1 - k), (25 * y - 20 * c) * (1 - k)], axis=-1)


BROKEN = {
    "noise": bytes(range(256)),
    "empty": b"",
    "cut in its header": P3[:100],
    "cut in its tags": P3[:200],
    "no red": P3.replace(b"rXYZ", b"xXYZ"),
    "no mark": P3.replace(b"acsp", b"pcsa"),
    "of gray pixels": gray_profile(1.8),
    "of inks": table_profile(b"CMYK", inks()),
    "a link of devices": P3.replace(b"mntr", b"link"),
    "a million tags": P3[:128] + struct.pack(">I", 10**6) + P3[132:],
    "curves of no known kind": P3.replace(b"para", b"arap"),
    "a curve longer than the file": rgb_profile("P3", 1.8).replace(
        curve_tag(1.8)[:12], b"curv\0\0\0\0\x7f\xff\xff\xff"
    ),
    "a table larger than the file": profile_of(
        b"RGB ", {b"A2B0": b"mft1\0\0\0\0\3\3\xff\0" + bytes(2_000)}, connection=b"Lab "
    ),
}
