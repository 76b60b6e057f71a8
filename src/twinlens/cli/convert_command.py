"""`twinlens convert SOURCE TARGET`: a published checkpoint to a folder that runs fast."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from twinlens.cli.console import note


def convert_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A checkpoint file or folder of any published format, or a pulled model's name.",
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The folder to write.")],
    precision: Annotated[
        Literal["fp32", "fp16", "int8"],
        typer.Option("--precision", "-p", help="fp16 halves the size, int8 quarters it."),
    ] = "fp32",
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What the model calls itself. [default: SOURCE's name]",
            show_default=False,
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Interpolate to pictures of N pixels.", show_default=False
        ),
    ] = None,
    vision_heads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Attention heads of the image tower, where no file says.",
            show_default=False,
        ),
    ] = None,
    text_heads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Attention heads of the text tower, where no file says.",
            show_default=False,
        ),
    ] = None,
    activation: Annotated[
        Literal["gelu", "gelu_tanh", "quick_gelu"] | None,
        typer.Option(help="Activation of both towers, where no file says.", show_default=False),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace TARGET if it is there.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Convert a checkpoint to ONNX, if the result computes what the checkpoint does.

    The towers are compared with PyTorch's on the photos and captions of this package;
    TARGET is only written when they agree. Then: twinlens search photos/ --model TARGET.

    \b
      twinlens convert ViT-B-32.pt vit-b-32/
      twinlens convert siglip-base-patch16-224/ siglip-int8/ --precision int8
    """
    from twinlens.runtime.convert import convert

    result = convert(
        source,
        target,
        precision=precision,
        name=name,
        overwrite=overwrite,
        vision_heads=vision_heads,
        text_heads=text_heads,
        activation=activation,
        image_size=image_size,
        say=note,
    )
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
        return
    print(f"{result.folder}: {result.size_bytes / 1e6:,.1f} MB in {precision}")
    reference = "PyTorch" if precision == "fp32" else "fp32"
    for side, agreement in (("image", result.image), ("text", result.text)):
        print(
            f"  {side} tower: cosine to {reference} at least {agreement.min_cosine:.6f}, "
            f"mean {agreement.mean_cosine:.6f}, on {agreement.items} samples"
        )
    print(f'Use it: twinlens search FOLDER "words" --model {result.folder}')
