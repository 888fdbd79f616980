"""README of a classifier exported to ncnn: input, output, and code to run it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploy.artefact.metadata import METADATA_NAME
from deploy.ncnn.detector_readme import ARITHMETIC

if TYPE_CHECKING:
    from deploy.outputs.logits import ClassifierMetadata

_PAGE = """\
# {folder_name}

A classifier for [ncnn](https://github.com/Tencent/ncnn), with {precision} weights and {num_classes} classes{names}.
`{metadata_name}` contains the same facts for programs.

## Input and output

* Blob `in0`: ({channels}, {height}, {width}) float32{order}, this size only; each value divided by 255{normalised}.
* Blob `out0`: {num_classes} logits, float32. The largest one is the predicted class; softmax gives probabilities.

## C++

    ncnn::Net net;
    // {arithmetic}
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = false;
    net.load_param("{folder_name}/model.ncnn.param");
    net.load_model("{folder_name}/model.ncnn.bin");
    // pixels: {width} x {height} x {channels} bytes
    ncnn::Mat in = ncnn::Mat::from_pixels(pixels, ncnn::Mat::{pixel_kind}, {width}, {height});
    // ncnn computes (byte - mean) * norm, so mean is 255 * the mean above, and norm is 1 / (255 * std)
    const float mean[{channels}] = {{{means}}}, norm[{channels}] = {{{norms}}};
    in.substract_mean_normalize(mean, norm);
    ncnn::Extractor extractor = net.create_extractor();
    extractor.input("in0", in);
    ncnn::Mat logits;
    extractor.extract("out0", logits);

## Python

In a clone of this project, with images (B, C, H, W) already normalised:

    from deploy import load_classifier
    logits = load_classifier("{folder_name}")(images)

With the ncnn package alone:

    import ncnn, numpy as np
    net = ncnn.Net()
    # {arithmetic}
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.load_param("{folder_name}/model.ncnn.param")
    net.load_model("{folder_name}/model.ncnn.bin")
    image = np.ascontiguousarray(image, dtype=np.float32)  # one of these images; ncnn points into it
    with net.create_extractor() as extractor:
        extractor.input("in0", ncnn.Mat(image))
        logits = np.array(extractor.extract("out0")[1])
"""

_PIXELS = {1: ("", "PIXEL_GRAY"), 3: (", RGB", "PIXEL_RGB")}


def classifier_readme(metadata: ClassifierMetadata, *, folder_name: str) -> str:
    """Format the README of the folder `folder_name`, as Markdown."""
    channels, height, width = metadata.image_chw
    order, pixel_kind = _PIXELS.get(channels, ("", "PIXEL_..."))
    mean, std = metadata.normalisation
    normalised = f", minus {_numbers(mean)}, divided by {_numbers(std)}" if metadata.mean or metadata.std else ""
    return _PAGE.format(
        folder_name=folder_name,
        precision=metadata.precision,
        num_classes=metadata.num_classes,
        names=f": {', '.join(metadata.names)}" if metadata.names else "",
        metadata_name=METADATA_NAME,
        arithmetic=ARITHMETIC,
        channels=channels,
        height=height,
        width=width,
        order=order,
        normalised=normalised,
        pixel_kind=pixel_kind,
        means=", ".join(f"{255 * value:.6g}f" for value in map(float, mean)),
        norms=", ".join(f"{1 / (255 * value):.6g}f" for value in map(float, std)),
    )


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.6g}" for value in values)
