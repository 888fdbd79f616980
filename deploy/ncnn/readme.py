"""The page beside an ncnn export: what goes in, what comes out, and the lines that run it."""

from __future__ import annotations

from deploy.metadata import METADATA_NAME, ExportMetadata

ARITHMETIC = "Computes in fp32; without this line ncnn takes 16 bits where the processor has them."

_PAGE = """\
# {folder_name}

A detector for [ncnn](https://github.com/Tencent/ncnn), {precision} weights, {num_classes} classes: {names}.
The same facts for programs: `{metadata_name}`.

## In and out

* Blob `in0`: (3, H, W) float32, RGB, each value divided by 255. {sizes}
  Pictures are scaled to fit with their aspect ratio kept, the rest filled with 114/255.
* Blobs below: before the sigmoid, (A * (5 + classes), H / stride, W / stride), float32. Channel
  a * {num_outputs} + i holds, for anchor a: x, y, w, h, objectness, then the classes.

| blob | stride | anchors w x h in pixels |
|---|---|---|
{heads}

With s the sigmoid, the cell at column cx and row cy, and anchor (aw, ah), in pixels of the input:

    centre x = (2 s(x) - 0.5 + cx) * stride      width  = (2 s(w))^2 * aw
    centre y = (2 s(y) - 0.5 + cy) * stride      height = (2 s(h))^2 * ah
    score of class k = s(objectness) * s(class k)

Then non-maximum suppression per class, at an IoU of 0.45 for instance.

## C++

In an app with the library of this project's deploy/cpp, decoding and suppression included:

    small_detector::Detector detector("{folder_name}");
    // pixels: RGB bytes of a picture of any size, w x h
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

In a clone of this project, decoding and suppression included:

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


def ncnn_readme(metadata: ExportMetadata, *, folder_name: str) -> str:
    """Markdown for the folder of that name."""
    height, width = metadata.image_hw
    blobs = [f"out{level}" for level in range(len(metadata.strides))]
    rows = [
        f"| `{blob}` | {stride} | {_anchors(anchors)} |"
        for blob, stride, anchors in zip(blobs, metadata.strides, metadata.anchors, strict=True)
    ]
    multiple = f"H and W are multiples of {max(metadata.strides)}; it was exported with {height} x {width}."
    return _PAGE.format(
        folder_name=folder_name,
        precision=metadata.precision,
        num_classes=metadata.num_classes,
        names=", ".join(metadata.names),
        metadata_name=METADATA_NAME,
        arithmetic=ARITHMETIC,
        sizes=multiple if metadata.dynamic else f"H is {height} and W is {width}, no other size.",
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
