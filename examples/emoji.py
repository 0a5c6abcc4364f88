"""A folder of pictures, masks and groups to try mmfast on: the emoji of Debian's package fonts-noto-color-emoji.

    apt-get install fonts-noto-color-emoji
    pip install fonttools
    python examples/emoji.py emoji

writes emoji/image/GROUP/NAME.png, with transparency, and emoji/mask/GROUP/NAME.png, black and white. GROUP is the part
of Unicode that the emoji's first character is from, flags apart. docs/tutorial.md goes on from here. With --captions,
emoji/caption/GROUP/NAME.txt has the emoji's name: "man ear of rice" is a farmer.

    python examples/emoji.py pictures --emoji 400 --digits 100

writes 400 of the emoji and 100 of scikit-learn's handwritten digits, grey and of 8 x 8 pixels, as a group of their own:
a small folder of pictures that are not alike.
"""

from __future__ import annotations

import argparse
import bisect
import io
import random
import sys
import unicodedata
from pathlib import Path
from typing import Any

from PIL import Image

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
# The first character of each group, and the group; up to the next one.
GROUPS = {
    0x0000: "symbols",
    0x1F1E6: "flags",
    0x1F200: "symbols",
    0x1F300: "nature",
    0x1F32D: "food",
    0x1F380: "activities",
    0x1F3FB: "symbols",
    0x1F400: "animals",
    0x1F440: "people",
    0x1F488: "objects",
    0x1F600: "faces",
    0x1F645: "people",
    0x1F680: "transport",
    0x1F774: "symbols",
    0x1F90C: "people",
    0x1F94A: "activities",
    0x1F950: "food",
    0x1F970: "faces",
    0x1F97B: "objects",
    0x1F980: "animals",
    0x1F9B0: "people",
    0x1FA70: "objects",
}
TONES = dict(
    zip(
        "\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff",
        ("light", "medium-light", "medium", "medium-dark", "dark"),
        strict=True,
    )
)
SEEN = 128  # the alpha from which a pixel is the emoji's and not the ground's


def group(character: int) -> str:
    """The group of the emoji that begin with this character."""
    return GROUPS[[*GROUPS][bisect.bisect_right([*GROUPS], character) - 1]]


def characters(font: Any) -> dict[str, tuple[int, ...]]:
    """By the glyph's name, the characters that it is drawn for: one, or those of a sequence (flags, tones of skin)."""
    found = {glyph: (character,) for character, glyph in font.getBestCmap().items()}
    tables = [sub for lookup in font["GSUB"].table.LookupList.Lookup for sub in lookup.SubTable]
    tables = [getattr(sub, "ExtSubTable", sub) for sub in tables]
    ligatures = [
        ([first, *of.Component], of.LigGlyph)
        for table in tables
        for first, all_of in getattr(table, "ligatures", {}).items()
        for of in all_of
    ]
    for _ in range(3):  # some are made of others
        for glyphs, glyph in ligatures:
            if glyph not in found and all(part in found for part in glyphs):
                found[glyph] = tuple(character for part in glyphs for character in found[part])
    return found


def pictures(file: str) -> dict[str, tuple[str, Image.Image]]:
    """By an emoji's characters, as 1f468-1f33e, its group and its picture as the font has it, 136 x 128 RGBA."""
    from fontTools.ttLib import TTFont

    font = TTFont(file)
    drawn_for, found = characters(font), {}
    for glyph, bitmap in font["CBDT"].strikeData[0].items():
        picture = Image.open(io.BytesIO(bitmap.imageData)).convert("RGBA")
        if glyph in drawn_for and picture.getextrema()[3][1] >= SEEN:
            all_of = drawn_for[glyph]
            found["-".join(f"{character:x}" for character in all_of)] = (group(all_of[0]), picture)
    return found


def digits(count: int) -> dict[str, tuple[str, Image.Image]]:
    """The first of scikit-learn's digits, as `pictures` has the emoji: grey, white where the ink is."""
    from sklearn.datasets import load_digits

    shades = (load_digits().images[:count] * (255 / 16)).round().astype("uint8")  # of 0 .. 16
    return {f"digit-{i:04}": ("digits", Image.fromarray(ink)) for i, ink in enumerate(shades)}


def caption(name: str) -> str:
    """What Unicode calls the characters of an emoji, without those that only join them: "man ear of rice".

    Empty if it is newer than the Unicode of this Python.
    """
    words = []
    for character in (chr(int(code, 16)) for code in name.split("-")):
        if character in TONES:
            words.append(f"{TONES[character]} skin tone")
        elif unicodedata.category(character) not in ("Cf", "Mn"):  # joiners and selectors of variants
            words.append(unicodedata.name(character, "").lower().replace("regional indicator symbol letter", "flag"))
    return " ".join(words) if all(words) else ""


def mask_of(picture: Image.Image) -> Image.Image:
    """White where the emoji or the ink is, else black."""
    return picture.getchannel(picture.getbands()[-1]).point(lambda seen: 255 * (seen >= SEEN))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder, new")
    parser.add_argument("--font", default=FONT, help=f"the font's file [{FONT}]")
    parser.add_argument("--emoji", type=int, metavar="N", help="how many emoji, chosen at random [all]")
    parser.add_argument("--digits", type=int, metavar="N", default=0, help="how many digits of scikit-learn to add [0]")
    parser.add_argument("--captions", action="store_true", help="also write the name of each emoji")
    args = parser.parse_args()
    if args.out.exists():
        print(f"{args.out} already exists; choose a new folder", file=sys.stderr)
        return 2
    if not Path(args.font).is_file():
        print(f"{args.font} does not exist; install it by apt-get install fonts-noto-color-emoji", file=sys.stderr)
        return 2
    found = pictures(args.font)
    if args.emoji is not None:
        found = dict(sorted(random.Random(0).sample(sorted(found.items()), min(args.emoji, len(found)))))
    found |= digits(args.digits)
    for name, (of, picture) in found.items():
        for kind, shown in (("image", picture), ("mask", mask_of(picture))):
            file = args.out / kind / of / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            shown.save(file)
        if args.captions and of != "digits" and caption(name):
            file = args.out / "caption" / of / f"{name}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(caption(name), encoding="utf-8")
    print(f"{len(found)} pictures in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
