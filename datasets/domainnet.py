"""`domainnet`: which of 345 things is it, in six kinds of pictures; a task is a kind. Multi-domain. Spec: datasets 13.

Source: http://ai.bu.edu/DomainNet (Peng et al., ICCV 2019), in three forms: the official folders and lists, AdaShare's
two lists for all domains together (github.com/sunxm2357/AdaShare, branch domainnet), and folders by split as TAPS takes
them. Labels are the official ones in each form, which are not the order of the folders' names. Images of any size are
stretched to one square, as AdaShare's release evaluates them. A tenth of each class is held out of train. Read on twins
only; counts are those of the cleaned release.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import ClassVar

import pydantic

from datasets.contracts import DatasetSpec, Split, TaskSpec
from datasets.errors import ProtocolError, unknown
from datasets.on_disk.files import FileError, read_bytes
from datasets.on_disk.loader import FileLoader, FileOptions
from datasets.on_disk.photographs import LabelledPhotos, class_folders, compared, photo_source
from datasets.on_disk.sources import Fault, Source
from datasets.registry import DatasetOptions, ExpectedFiles, register_dataset

DOMAINS = ("real", "painting", "quickdraw", "clipart", "infograph", "sketch")  # in AdaShare's order
# Position = official label. Alphabetical but for capitals, hyphens and underscores (tensorflow-datasets, domainnet).
_NAMES = (
    "aircraft_carrier airplane alarm_clock ambulance angel animal_migration ant anvil apple arm asparagus axe "
    "backpack banana bandage barn baseball baseball_bat basket basketball bat bathtub beach bear beard bed bee belt "
    "bench bicycle binoculars bird birthday_cake blackberry blueberry book boomerang bottlecap bowtie bracelet brain "
    "bread bridge broccoli broom bucket bulldozer bus bush butterfly cactus cake calculator calendar camel camera "
    "camouflage campfire candle cannon canoe car carrot castle cat ceiling_fan cello cell_phone chair chandelier "
    "church circle clarinet clock cloud coffee_cup compass computer cookie cooler couch cow crab crayon crocodile "
    "crown cruise_ship cup diamond dishwasher diving_board dog dolphin donut door dragon dresser drill drums duck "
    "dumbbell ear elbow elephant envelope eraser eye eyeglasses face fan feather fence finger fire_hydrant fireplace "
    "firetruck fish flamingo flashlight flip_flops floor_lamp flower flying_saucer foot fork frog frying_pan garden "
    "garden_hose giraffe goatee golf_club grapes grass guitar hamburger hammer hand harp hat headphones hedgehog "
    "helicopter helmet hexagon hockey_puck hockey_stick horse hospital hot_air_balloon hot_dog hot_tub hourglass "
    "house house_plant hurricane ice_cream jacket jail kangaroo key keyboard knee knife ladder lantern laptop leaf "
    "leg light_bulb lighter lighthouse lightning line lion lipstick lobster lollipop mailbox map marker matches "
    "megaphone mermaid microphone microwave monkey moon mosquito motorbike mountain mouse moustache mouth mug "
    "mushroom nail necklace nose ocean octagon octopus onion oven owl paintbrush paint_can palm_tree panda pants "
    "paper_clip parachute parrot passport peanut pear peas pencil penguin piano pickup_truck picture_frame pig pillow "
    "pineapple pizza pliers police_car pond pool popsicle postcard potato power_outlet purse rabbit raccoon radio "
    "rain rainbow rake remote_control rhinoceros rifle river roller_coaster rollerskates sailboat sandwich saw "
    "saxophone school_bus scissors scorpion screwdriver sea_turtle see_saw shark sheep shoe shorts shovel sink "
    "skateboard skull skyscraper sleeping_bag smiley_face snail snake snorkel snowflake snowman soccer_ball sock "
    "speedboat spider spoon spreadsheet square squiggle squirrel stairs star steak stereo stethoscope stitches "
    "stop_sign stove strawberry streetlight string_bean submarine suitcase sun swan sweater swing_set sword syringe "
    "table teapot teddy-bear telephone television tennis_racquet tent The_Eiffel_Tower The_Great_Wall_of_China "
    "The_Mona_Lisa tiger toaster toe toilet tooth toothbrush toothpaste tornado tractor traffic_light train tree "
    "triangle trombone truck trumpet t-shirt umbrella underwear van vase violin washing_machine watermelon waterslide "
    "whale wheel windmill wine_bottle wine_glass wristwatch yoga zebra zigzag "
)
CLASSES = tuple(_NAMES.split())
_LABELS = {name: label for label, name in enumerate(CLASSES)}
# Images of the cleaned release; the sums, 409,832 and 176,743, are those of a public data card.
COUNTS: Mapping[str, Mapping[str, int]] = {
    "train": dict(zip(DOMAINS, (120_906, 50_416, 120_750, 33_525, 36_023, 48_212), strict=True)),
    "test": dict(zip(DOMAINS, (52_041, 21_850, 51_750, 14_604, 15_582, 20_916), strict=True)),
}
# Recalled, of the release before it was cleaned; the sums by domain are the paper's.
UNCLEANED: Mapping[str, Mapping[str, int]] = {
    "train": dict(zip(DOMAINS, (122_563, 52_867, 120_750, 34_019, 37_087, 49_115), strict=True)),
    "test": dict(zip(DOMAINS, (52_764, 22_892, 51_750, 14_818, 16_114, 21_271), strict=True)),
}
_BASE = "http://csr.bu.edu/ftp/visda/2019/multi-source"
_FETCH = (
    "mkdir -p {folder}",
    "cd {folder}",
    f"B={_BASE}",
    "for d in real quickdraw infograph sketch groundtruth/clipart groundtruth/painting; do n=$(basename $d); "
    "wget -c $B/$d.zip $B/domainnet/txt/${n}_train.txt $B/domainnet/txt/${n}_test.txt && unzip -q $n.zip; done",
)


class DomainNetOptions(FileOptions):
    """How large the images are."""

    size: int = pydantic.Field(
        default=224, ge=16, le=512, description="side of the square to which every image is stretched, in pixels"
    )


@register_dataset("domainnet")
class DomainNet(FileLoader):
    """Six domains, a task each, with images of its own and the same 345 classes."""

    Options = DomainNetOptions
    layouts: ClassVar[Mapping[str, ExpectedFiles]] = {
        "official": ExpectedFiles(
            "{DOMAIN/CLASS/*, DOMAIN_train.txt, DOMAIN_test.txt} of the domains that are asked for "
            f"({', '.join(DOMAINS)})",
            "6.1, 3.7, 0.5, 1.3 and 4.3 GB to download, of sketch not stated",
            ("|".join(f"{domain}_train.txt" for domain in DOMAINS),),
            source=_BASE,
            commands=_FETCH,
        ),
        "adashare": ExpectedFiles(
            "{train,test}.txt and the images that they name, DOMAIN/...",
            "16 GB",
            ("train.txt", "test.txt"),
            source="https://drive.google.com/file/d/1qVtPnKX_iuNXcR3JoP4llxflIUEw880j (AdaShare)",
        ),
        "folders": ExpectedFiles(
            "DOMAIN/{train,test}/CLASS/*",
            "16 GB",
            ("|".join(f"{domain}/test" for domain in DOMAINS),),  # `train` is a class too
        ),
    }

    def spec(self, protocol: str, options: DatasetOptions, layout: str | None = None) -> DatasetSpec:
        """A task a domain."""
        assert isinstance(options, DomainNetOptions)
        if protocol != "standard":
            raise ProtocolError(f"domainnet has no labels for protocol {protocol!r}; it offers 'standard'.")
        return DatasetSpec(
            name="domainnet",
            layout=layout or "official",
            version=f"v1+{options.size}",
            protocol=protocol,
            domains="multi",
            tasks=tuple(TaskSpec(domain, "class", len(CLASSES), ("accuracy",), CLASSES) for domain in DOMAINS),
            splits={split: sum(by_domain.values()) for split, by_domain in COUNTS.items()},
            native_size=(options.size, options.size),
            mean=(0.485, 0.456, 0.406),  # ImageNet's, as AdaShare's release
            std=(0.229, 0.224, 0.225),
            licence="non-commercial, with a fair-use notice",
            home="https://ai.bu.edu/DomainNet/",
            tier="verified on twins",
            counts=COUNTS,
        )

    def sources(self, folder: Path, split: Split, spec: DatasetSpec, options: FileOptions) -> Mapping[str, Source]:
        """The domains that are asked for; no list of another one is opened. Raises FileError."""
        assert isinstance(options, DomainNetOptions)
        read = functools.cache(listed)  # AdaShare's lists hold every domain
        found = {}
        for domain in spec.inputs:
            folders = spec.layout == "folders"
            photos = (
                _by_folder(folder, domain, split) if folders else _by_list(folder, domain, split, spec.layout, read)
            )
            faults = [*photos.faults, *_release(domain, split, len(photos.ids), options)]
            found[domain] = photo_source(domain, dataclasses.replace(photos, faults=faults), options.size, "stretch")
        return found


def listed(path: Path) -> dict[str, int]:
    """{path: label} of the lines `path label` of a list. The last blank divides them, since folders may have blanks.

    Raises FileError naming the line that is not of this form, leads out of the folder, is of no domain, or repeats a
    path.
    """
    try:
        lines = read_bytes(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: expected UTF-8, found byte {error.object[error.start]:#04x}.") from error
    rows: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        pure = PurePosixPath(name)
        if not (label.isascii() and label.isdigit() and int(label) < len(CLASSES)):
            raise FileError(
                f"{path}: line {number}: expected a path and a label below {len(CLASSES)}, found {line!r:.80}."
            )
        if len(pure.parts) != 3 or pure.is_absolute() or ".." in pure.parts or "\\" in name:
            raise FileError(f"{path}: line {number}: expected DOMAIN/CLASS/IMAGE, found {name!r:.80}.")
        if pure.parts[0] not in DOMAINS:
            raise FileError(f"{path}: line {number}: {unknown('domain', pure.parts[0], DOMAINS)}")
        if name in rows:
            raise FileError(f"{path}: line {number}: {name!r} is listed twice.")
        rows[name] = int(label)
    return rows


def class_id(name: str, path: Path) -> int:
    """The official label of a class. Raises FileError with the nearest names for an unknown one."""
    if name not in _LABELS:
        raise FileError(f"{path}: {unknown('class of domainnet', name, CLASSES)}")
    return _LABELS[name]


def _by_list(
    folder: Path, domain: str, split: Split, layout: str, read: Callable[[Path], dict[str, int]]
) -> LabelledPhotos:
    """read: as `listed`."""
    path, other = (
        folder / (f"{part}.txt" if layout == "adashare" else f"{domain}_{part}.txt")
        for part in (split, "test" if split == "train" else "train")
    )
    labels = {name: label for name, label in read(path).items() if name.startswith(f"{domain}/")}
    if layout == "official" and len(labels) != len(read(path)):
        raise FileError(f"{path}: names images of other domains than {domain}.")
    faults = []
    for name, label in labels.items():
        expected = class_id(name.split("/")[1], path)
        if label != expected:
            faults.append(Fault(path.name, name, "label", f"{expected}, that of its folder", str(label)))
        if name in read(other):
            faults.append(Fault(path.name, name, "split", "one of train and test", f"in {other.name} too"))
    files = [folder / name for name in labels]
    missing, n_unlisted = compared(files, folder, known=read(other))
    notes = [f"{domain}: {n_unlisted} files are in no list and left out"] if n_unlisted else []
    return LabelledPhotos(list(labels), files, list(labels.values()), [*faults, *missing], notes, content=[path])


def _by_folder(folder: Path, domain: str, split: Split) -> LabelledPhotos:
    classes, n_hidden = class_folders(folder / domain / split)
    rows = [(path, class_id(name, path.parent)) for name, paths in classes.items() for path in paths]
    notes = [f"{domain}/{split}: {n_hidden} hidden files are left out"] if n_hidden else []
    ids = [path.relative_to(folder).as_posix() for path, _ in rows]
    return LabelledPhotos(ids, [path for path, _ in rows], [label for _, label in rows], notes=notes)


def _release(domain: str, split: str, n: int, options: FileOptions) -> Iterator[Fault]:
    """A fault that names the release, where the number of images tells it."""
    if options.profile == "real" and n == UNCLEANED[split][domain] != COUNTS[split][domain]:
        yield Fault(f"{domain} {split}", "", "release", "the cleaned images", "the images before they were cleaned")
