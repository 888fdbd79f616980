"""Names of the 80 COCO classes, in the order of all YOLOv5 COCO checkpoints, and COCO's ids of them."""

# fmt: off
COCO_NAMES: tuple[str, ...] = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard",
    "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase",
    "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on

# COCO numbers its categories 1 to 91 and leaves these out.
_UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
COCO_IDS: tuple[int, ...] = tuple(number for number in range(1, 92) if number not in _UNUSED_IDS)


def default_names(num_classes: int) -> tuple[str, ...]:
    """Return class names for a file without any: COCO's for 80 classes, else `class0`, `class1`, ..."""
    if num_classes == len(COCO_NAMES):
        return COCO_NAMES
    return tuple(f"class{index}" for index in range(num_classes))
