"""Classes and colours of COCO and Cityscapes, in the form in which Detectron2 projects use them."""
from detectron2._lite import RefusedTable

# id (* for stuff), colour, name; the values are those of panopticapi's panoptic_coco_categories.json
_COCO = """
1 dc143c person; 2 770b20 bicycle; 3 00008e car; 4 0000e6 motorcycle; 5 6a00e4 airplane; 6 003c64 bus;
7 005064 train; 8 000046 truck; 9 0000c0 boat; 10 faaa1e traffic light; 11 64aa1e fire hydrant; 13 dcdc00 stop sign;
14 af74af parking meter; 15 fa001e bench; 16 a52a2a bird; 17 ff4dff cat; 18 00e2fc dog; 19 b6b6ff horse;
20 005200 sheep; 21 78a69d cow; 22 6e4c00 elephant; 23 ae39ff bear; 24 c76400 zebra; 25 480076 giraffe;
27 ffb3f0 backpack; 28 007d5c umbrella; 31 d10097 handbag; 32 bcd0b6 tie; 33 00dcb0 suitcase; 34 ff63a4 frisbee;
35 5c0049 skis; 36 8581ff snowboard; 37 4eb4ff sports ball; 38 00e400 kite; 39 aefff3 baseball bat;
40 2d59ff baseball glove; 41 868667 skateboard; 42 9194ae surfboard; 43 ffd0ba tennis racket; 44 c5e2ff bottle;
46 ab8601 wine glass; 47 6d3f36 cup; 48 cf8aff fork; 49 97005f knife; 50 09503d spoon; 51 546933 bowl;
52 4a4169 banana; 53 a6c466 apple; 54 d0c3d2 sandwich; 55 ff6d41 orange; 56 008f95 broccoli; 57 b300c2 carrot;
58 d1636a hot dog; 59 057900 pizza; 60 e3ffcd donut; 61 93bad0 cake; 62 994501 chair; 63 035fa1 couch;
64 a3ff00 potted plant; 65 7700aa bed; 67 00b6c7 dining table; 70 00a578 toilet; 72 b78258 tv; 73 5f2000 laptop;
74 827287 mouse; 75 6e8185 remote; 76 a64a76 keyboard; 77 db8eb9 cell phone; 78 4fd272 microwave; 79 b25a3e oven;
80 41460f toaster; 81 7fa773 sink; 82 3b696a refrigerator; 84 8e6c2d book; 85 c4ac00 clock; 86 5f3650 vase;
87 804cff scissors; 88 c93901 teddy bear; 89 f6007a hair drier; 90 bfa2d0 toothbrush; 92* ffff80 banner;
93* 93d3cb blanket; 95* 966464 bridge; 100* a8abac cardboard; 107* 9270c6 counter; 109* d2aa64 curtain;
112* 5c8859 door-stuff; 118* da58b8 floor-wood; 119* f18100 flower; 122* d911ff fruit; 125* 7c4ab5 gravel;
128* 464646 house; 130* ffe4ff light; 133* 9ad000 mirror-stuff; 138* c1005c net; 141* 4c5b71 pillow;
144* ffb4c3 platform; 145* 6a9ab0 playingfield; 147* e6968c railroad; 148* 3c8fff river; 149* 804080 road;
151* 5c5237 roof; 154* fed47c sand; 155* 494dae sea; 156* ffa062 shelf; 159* ffffff snow; 161* 68546d stairs;
166* a9a483 tent; 168* e1c7ff towel; 171* 89364a wall-brick; 175* 879edf wall-stone; 176* 07f6e7 wall-tile;
177* 6bffc8 wall-wood; 178* 3a2995 water-other; 180* b7798e window-blind; 181* ff4961 window-other;
184* 6b8e23 tree-merged; 185* be9999 fence-merged; 186* 928b8d ceiling-merged; 187* 4682b4 sky-other-merged;
188* 86c79c cabinet-merged; 189* d1e28c table-merged; 190* 60246c floor-other-merged; 191* 606060 pavement-merged;
192* 40aa40 mountain-merged; 193* 98fb98 grass-merged; 194* d0e5e4 dirt-merged; 195* cebaab paper-merged;
196* 98a140 food-other-merged; 197* 747000 building-other-merged; 198* 00728f rock-merged;
199* 66669c wall-other-merged; 200* fa8dff rug-merged
"""

# the 19 evaluated classes of cityscapesscripts.helpers.labels
_CITYSCAPES = """
7* 804080 road; 8* f423e8 sidewalk; 11* 464646 building; 12* 66669c wall; 13* be9999 fence; 17* 999999 pole;
19* faaa1e traffic light; 20* dcdc00 traffic sign; 21* 6b8e23 vegetation; 22* 98fb98 terrain; 23* 4682b4 sky;
24 dc143c person; 25 ff0000 rider; 26 00008e car; 27 000046 truck; 28 003c64 bus; 31 005064 train;
32 0000e6 motorcycle; 33 770b20 bicycle
"""


def _unpack(table: str) -> list[dict]:
    """Rows of id, RGB colour (0..255), name, isthing (1 or 0)."""
    rows = []
    for entry in table.replace("\n", " ").split(";"):
        number, color, name = entry.strip().split(" ", 2)
        rgb = [int(color[i : i + 2], 16) for i in (0, 2, 4)]
        rows.append({"color": rgb, "isthing": int("*" not in number), "id": int(number.rstrip("*")), "name": name})
    return rows


COCO_CATEGORIES = _unpack(_COCO)

CITYSCAPES_CATEGORIES = _unpack(_CITYSCAPES)
for _number, _row in enumerate(CITYSCAPES_CATEGORIES):
    _row.update(color=tuple(_row["color"]), trainId=_number)

ADE20K_SEM_SEG_CATEGORIES = RefusedTable("ADE20K_SEM_SEG_CATEGORIES", __name__)

_SIDED = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")

COCO_PERSON_KEYPOINT_FLIP_MAP = tuple((f"left_{part}", f"right_{part}") for part in _SIDED)

COCO_PERSON_KEYPOINT_NAMES = ("nose", *(name for pair in COCO_PERSON_KEYPOINT_FLIP_MAP for name in pair))

# from, to, RGB colour of the line
KEYPOINT_CONNECTION_RULES = [
    ("left_ear", "left_eye", (102, 204, 255)), ("right_ear", "right_eye", (51, 153, 255)),
    ("left_eye", "nose", (102, 0, 204)), ("nose", "right_eye", (51, 102, 255)),
    ("left_shoulder", "right_shoulder", (255, 128, 0)), ("left_shoulder", "left_elbow", (153, 255, 204)),
    ("right_shoulder", "right_elbow", (128, 229, 255)), ("left_elbow", "left_wrist", (153, 255, 153)),
    ("right_elbow", "right_wrist", (102, 255, 224)), ("left_hip", "right_hip", (255, 102, 0)),
    ("left_hip", "left_knee", (255, 255, 77)), ("right_hip", "right_knee", (153, 255, 204)),
    ("left_knee", "left_ankle", (191, 255, 128)), ("right_knee", "right_ankle", (255, 195, 77)),
]


_THINGS = [category for category in COCO_CATEGORIES if category["isthing"]]
_STUFF = [category for category in COCO_CATEGORIES if not category["isthing"]]


def _get_coco_instances_meta() -> dict:
    """The 80 things, numbered from 0 in the order of their ids."""
    return {
        "thing_dataset_id_to_contiguous_id": {c["id"]: i for i, c in enumerate(_THINGS)},
        "thing_classes": [c["name"] for c in _THINGS],
        "thing_colors": [c["color"] for c in _THINGS],
    }


def _get_coco_panoptic_separated_meta() -> dict:
    """The 80 things, and beside them 54 stuff classes of which number 0 means "any thing"."""
    return {
        "stuff_dataset_id_to_contiguous_id": {c["id"]: i for i, c in enumerate(_STUFF, start=1)},
        "stuff_classes": ["things"] + [c["name"].replace("-other", "").replace("-merged", "") for c in _STUFF],
        "stuff_colors": [[82, 18, 128]] + [c["color"] for c in _STUFF],
        **_get_coco_instances_meta(),
    }


def _get_coco_panoptic_standard_meta() -> dict:
    """All 133 classes in one numbering."""
    names, colors = [c["name"] for c in COCO_CATEGORIES], [c["color"] for c in COCO_CATEGORIES]
    ids = {kind: {c["id"]: i for i, c in enumerate(COCO_CATEGORIES) if c["isthing"] == kind} for kind in (0, 1)}
    things = {"thing_classes": names, "thing_colors": colors, "thing_dataset_id_to_contiguous_id": ids[1]}
    return {**things, "stuff_classes": names, "stuff_colors": colors, "stuff_dataset_id_to_contiguous_id": ids[0]}


def _get_builtin_metadata(dataset_name: str) -> dict:
    """Metadata by the kind of dataset; KeyError for an unknown one."""
    if dataset_name == "coco":
        return _get_coco_instances_meta()
    if dataset_name == "coco_panoptic_separated":
        return _get_coco_panoptic_separated_meta()
    if dataset_name == "coco_panoptic_standard":
        return _get_coco_panoptic_standard_meta()
    if dataset_name == "coco_person":
        return {
            "thing_classes": ["person"],
            "keypoint_names": COCO_PERSON_KEYPOINT_NAMES,
            "keypoint_flip_map": COCO_PERSON_KEYPOINT_FLIP_MAP,
            "keypoint_connection_rules": KEYPOINT_CONNECTION_RULES,
        }
    if dataset_name == "cityscapes":
        return {
            "thing_classes": [c["name"] for c in CITYSCAPES_CATEGORIES if c["isthing"]],
            "stuff_classes": [c["name"] for c in CITYSCAPES_CATEGORIES],
        }
    raise KeyError(f"There is no built-in metadata for '{dataset_name}'.")
