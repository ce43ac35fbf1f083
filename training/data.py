"""Training data: icons of permissively licensed emoji sets, drawn at 64x64 on white, with captions and splits.

    python training/data.py          # writes build/model/images.npz and build/model/manifest.json

Sources: the npm packages of `SETS` (drawings) and of `NAMES` (English names, Unicode CLDR), and photographs that
scikit-image carries.  A record of the manifest describes one image:

    index       its place in images.npz, uint8 [N, 64, 64, 3]
    concept     what it shows, as the sets call it; name: as CLDR calls it; caption: "<name>, <style> style"
    style       the set; category: the kind of concept; licence
    split       what it may be used for:
        train             base model, autoencoder and scorer learn from it; share: how often the base model sees it
        other             autoencoder and scorer learn from it
        heldout_pair      nobody does, though the concept is in `train` in the other two styles
        heldout_concept   the base model has seen the concept in no style, the autoencoder in none either; the scorer has,
                          except in the noto style, since it has to judge drawings of it
        rare              nobody does: the other styles of the concepts that the base model sees least
        ood_style         nobody does: a fourth set, of which the scorer alone knows the rest
        ood_photo         nobody does: photographs
"""

import hashlib
import io
import json
import re
import subprocess
import tarfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import resvg_py
import skimage.data
from PIL import Image

WORK = Path("build/model")
SIZE = 64
# style: npm package, version, licence
SETS = {
    "noto": ("@iconify-json/noto", "1.2.9", "Apache-2.0"),
    "flat": ("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT"),
    "gradient": ("@iconify-json/fluent-emoji", "1.2.7", "MIT"),
    "blob": ("@iconify-json/noto-v1", "1.2.5", "Apache-2.0"),
}
STYLES = ("noto", "flat", "gradient")
# Sets that do not tell the characters of their icons name them as these do.
NAMED_AS = {"gradient": "flat", "blob": "noto"}
NAMES = (
    ("cldr-annotations-full", "48.2.0", "annotations/en/annotations.json", "annotations"),
    ("cldr-annotations-derived-full", "48.2.0", "annotationsDerived/en/annotations.json", "annotationsDerived"),
)
PHOTOS = ("astronaut", "camera", "chelsea", "coffee", "hubble_deep_field", "rocket")

SKIN_TONE = re.compile(r"skin-tone|-(light|medium-light|medium|medium-dark|dark)$")
# Text, clock faces and flags: many, and alike.
DULL = re.compile(r"oclock|-thirty|button|keycap|flag|japanese|input-|id-|free|new-moon-symbol")
# The share of the concepts of each category that the base model may learn.
SHARES = {
    "Animals & Nature": 1.0,
    "Food & Drink": 1.0,
    "Smileys & Emotion": 0.7,
    "Activities": 0.7,
    "Objects": 0.45,
    "Travel & Places": 0.5,
}
HELDOUT_CONCEPTS, HELDOUT_PAIRS, GRADIENT_PAIRS, RARE, CONCEPTS = 20, 60, 24, 24, 450
# A rare concept is seen in one style instead of three, and this many times as often as another image.
RARE_SHARE = 0.25
OOD_STYLE = 64


def fixed(*parts):
    """A number in [0, 1) that depends on the parts alone."""
    return int(hashlib.sha256("|".join(parts).encode()).hexdigest()[:8], 16) / 2**32


def fetch(package, version):
    """The folder of an npm package, downloaded if need be."""
    folder = WORK / "npm" / f"{package.replace('/', '-').removeprefix('@')}-{version}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", f"{package}@{version}", "--pack-destination", str(folder.parent)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(f"{folder}.tgz") as archive:
            archive.extractall(folder, filter="data")
    return folder / "package"


def names():
    """{code points, as the sets write them: English name}"""
    found = {}
    for package, version, file, key in NAMES:
        annotations = json.loads((fetch(package, version) / file).read_text())[key]["annotations"]
        for characters, entry in annotations.items():
            if "tts" in entry:
                code = "-".join(f"{ord(c):x}" for c in characters if ord(c) != 0xFE0F)
                found[code] = entry["tts"][0].replace("\u2019", "'")
    return found


def draw(icons, name):
    """One icon of a set as uint8 [SIZE, SIZE, 3]; None if the renderer fails or nothing is to be seen."""
    icon = icons["icons"][name]
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    side = max(width, height)
    left, top = icon.get("left", 0) - (side - width) / 2, icon.get("top", 0) - (side - height) / 2
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {side} {side}">{icon["body"]}</svg>'
    )
    try:
        png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE, background="#ffffff", skip_system_fonts=True)
    except BaseException as error:  # a panic of the renderer is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return None
    image = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))
    return image if image.std() > 2 else None


def photographs():
    """(name, image) of each photograph, whole and in quarters."""
    for name in PHOTOS:
        photo = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        side = min(photo.size) // 2 * 2
        left, top = ((n - side) // 2 for n in photo.size)
        photo = photo.crop((left, top, left + side, top + side))
        yield name, photo
        half = side // 2
        for quarter in range(4):
            x, y = half * (quarter % 2), half * (quarter // 2)
            yield f"{name} {quarter + 1}", photo.crop((x, y, x + half, y + half))


class Splits:
    """What each image is for; the order of the concepts is that of a fixed hash."""

    def __init__(self, concepts):
        ordered = sorted(concepts, key=lambda name: fixed("split", name))
        ends = np.cumsum([0, HELDOUT_CONCEPTS, HELDOUT_PAIRS, GRADIENT_PAIRS, RARE])
        self.concepts, self.pairs, self.gradient, self.rare = (set(ordered[first:last]) for first, last in pairwise(ends))
        rest = sorted(ordered[ends[-1] :], key=lambda name: fixed("subset", name))
        known = CONCEPTS - len(self.pairs) - len(self.gradient) - len(self.rare)
        self.trained = set(rest[:known]) | self.pairs | self.gradient | self.rare

    def withheld(self, name):
        """The style in which a concept of a pair has never been seen."""
        if name in self.gradient:
            return "gradient"
        return "noto" if fixed("style", name) < 0.5 else "flat"

    def of(self, name, style):
        if style == "blob":
            return "other"
        if name in self.concepts:
            return "heldout_concept"
        if name in self.pairs | self.gradient and style == self.withheld(name):
            return "heldout_pair"
        if name in self.rare and style != STYLES[int(fixed("rare", name) * len(STYLES))]:
            return "rare"
        return "train" if name in self.trained else "other"


def main():
    called = names()
    icons = {style: json.loads((fetch(*SETS[style][:2]) / "icons.json").read_text()) for style in SETS}
    codes, categories = {}, {}
    for style in set(SETS) - set(NAMED_AS):
        folder = fetch(*SETS[style][:2])
        characters = json.loads((folder / "chars.json").read_text())
        codes[style] = {name: code.replace("-fe0f", "") for code, name in characters.items()}
        for category, members in json.loads((folder / "metadata.json").read_text())["categories"].items():
            categories.update(dict.fromkeys(members, category))
    codes.update({style: codes[other] for style, other in NAMED_AS.items()})
    common = set.intersection(*(set(icons[style]["icons"]) for style in STYLES))
    chosen = [
        name
        for name in sorted(common)
        if not SKIN_TONE.search(name)
        and not DULL.search(name)
        and codes["noto"].get(name) in called
        and fixed("keep", name) < SHARES.get(categories.get(name), 0)
    ]
    splits = Splits(chosen)

    records, images = [], []

    def add(image, **record):
        records.append({"index": len(images), **record})
        images.append(image)

    for style, (_, _, licence) in SETS.items():
        for name in sorted(icons[style]["icons"]):
            if SKIN_TONE.search(name) or name not in codes[style]:
                continue
            image = draw(icons[style], name)
            if image is None:
                print("not drawn:", style, name)
                continue
            words = called.get(codes[style][name], name.replace("-", " "))
            add(
                image,
                concept=name,
                name=words,
                style=style,
                caption=f"{words}, {style} style",
                category=categories.get(name),
                split=splits.of(name, style),
                share=RARE_SHARE if name in splits.rare else 1.0,
                licence=licence,
            )
    blobs = [r for r in records if r["style"] == "blob" and r["concept"] in splits.trained]
    for record in sorted(blobs, key=lambda r: fixed("ood", r["concept"]))[:OOD_STYLE]:
        record["split"] = "ood_style"
    for name, photo in photographs():
        words = name.replace("_", " ")
        add(
            np.asarray(photo.resize((SIZE, SIZE), Image.LANCZOS)),
            concept=name.replace(" ", "-"),
            name=words,
            style="photo",
            caption=words,
            category=None,
            split="ood_photo",
            share=1.0,
            licence="public domain",
        )
    np.savez_compressed(WORK / "images.npz", images=np.stack(images))
    (WORK / "manifest.json").write_text(json.dumps(records, indent=0, ensure_ascii=False))
    for (split, style), count in sorted(Counter((r["split"], r["style"]) for r in records).items()):
        print(f"{split:16} {style:9} {count}")
    print(f"{len(splits.trained)} concepts of {len(chosen)} in the base model's training")


if __name__ == "__main__":
    main()
