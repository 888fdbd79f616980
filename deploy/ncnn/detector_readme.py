"""README of a detector exported to ncnn: input, outputs, and code to run it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploy.artefact.metadata import METADATA_NAME

if TYPE_CHECKING:
    from deploy.outputs.heads import ExportMetadata

ARITHMETIC = "Computes in fp32; without this line ncnn uses 16-bit arithmetic where the CPU has it."

_PAGE = """\
# {folder_name}

A detector for [ncnn](https://github.com/Tencent/ncnn), with {precision} weights and {num_classes} classes: {names}.
`{metadata_name}` contains the same facts for programs.

## Input and outputs

* Blob `in0`: (3, H, W) float32, RGB, each value divided by 255. {sizes}
  Scale the image to fit, keep its aspect ratio, centre it, and fill the rest with 114/255.
* Blobs in the table: (A * (5 + classes), H / stride, W / stride) float32, before the sigmoid. Channel
  a * {num_outputs} + i contains, for anchor a and i = 0, 1, ...: x, y, w, h, objectness, then the classes.

| blob | stride | anchors w x h in pixels |
|---|---|---|
{heads}

With the sigmoid s, the cell at column cx and row cy, and the anchor (aw, ah), in pixels of the input:

    centre x = (2 s(x) - 0.5 + cx) * stride      width  = (2 s(w))^2 * aw
    centre y = (2 s(y) - 0.5 + cy) * stride      height = (2 s(h))^2 * ah
    score of class k = s(objectness) * s(class k)

Then apply non-maximum suppression per class, for example at an IoU of 0.45.

## C++

In an app with this project's C++ library (deploy/cpp), which includes decoding and suppression:

    small_detector::Detector detector("{folder_name}");
    // pixels: RGB bytes of an image of any size, w x h
    std::vector<small_detector::Detection> found = detector({{pixels, w, h, 3 * w}});

With ncnn alone:

    ncnn::Net net;
    net.opt.num_threads = 4;
    // {arithmetic}
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = false;
    net.load_param("{folder_name}/model.ncnn.param");
    net.load_model("{folder_name}/model.ncnn.bin");
    // rgb: width x height x 3 bytes, already scaled and filled to {width} x {height}
    ncnn::Mat in = ncnn::Mat::from_pixels(rgb, ncnn::Mat::PIXEL_RGB, {width}, {height});
    const float scale[3] = {{1 / 255.f, 1 / 255.f, 1 / 255.f}};
    in.substract_mean_normalize(nullptr, scale);
    ncnn::Extractor extractor = net.create_extractor();
    extractor.input("in0", in);
    ncnn::Mat {outputs};
{extract_cpp}

## Python

In a clone of this project, which includes decoding and suppression:

    from deploy import load
    detections = load("{folder_name}")("picture.jpg")

With the ncnn package alone:

    import ncnn, numpy as np
    net = ncnn.Net()
    # {arithmetic}
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.load_param("{folder_name}/model.ncnn.param")
    net.load_model("{folder_name}/model.ncnn.bin")
    image = np.ascontiguousarray(rgb.transpose(2, 0, 1), dtype=np.float32) / 255  # rgb: ({height}, {width}, 3) uint8
    with net.create_extractor() as extractor:
        extractor.input("in0", ncnn.Mat(image))
        heads = [np.array(extractor.extract(name)[1]) for name in ({blobs})]
"""


def detector_readme(metadata: ExportMetadata, *, folder_name: str) -> str:
    """Format the README of the folder `folder_name`, as Markdown."""
    height, width = metadata.image_hw
    blobs = [f"out{level}" for level in range(len(metadata.strides))]
    rows = [
        f"| `{blob}` | {stride} | {_anchors(anchors)} |"
        for blob, stride, anchors in zip(blobs, metadata.strides, metadata.anchors, strict=True)
    ]
    multiple = f"H and W are multiples of {max(metadata.strides)}; the export was traced at {height} x {width}."
    return _PAGE.format(
        folder_name=folder_name,
        precision=metadata.precision,
        num_classes=metadata.num_classes,
        names=", ".join(metadata.names),
        metadata_name=METADATA_NAME,
        arithmetic=ARITHMETIC,
        sizes=multiple if metadata.dynamic else f"H is {height} and W is {width}; no other size works.",
        num_outputs=5 + metadata.num_classes,
        heads="\n".join(rows),
        width=width,
        height=height,
        outputs=", ".join(blobs),
        extract_cpp="\n".join(f'    extractor.extract("{blob}", {blob});' for blob in blobs),
        blobs="".join(f'"{blob}", ' for blob in blobs).rstrip(),
    )


def _anchors(row: tuple[float, ...]) -> str:
    return ", ".join(f"{w:g} x {h:g}" for w, h in zip(row[::2], row[1::2], strict=True))
