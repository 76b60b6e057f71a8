"""What every test may ask for; PyTorch is loaded only by the tests that do."""

from pathlib import Path
from types import SimpleNamespace

import pytest

SHARED = Path(__file__).parent.parent.parent / "shared"


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Nothing that a test measures, converts or pulls lands in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWINLENS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder of golden files and real data; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (golden files and real data), which is not on this machine")
    return SHARED


@pytest.fixture
def run(capsys):
    """The command line, in this process: its exit code, and what it printed."""
    from twinlens.cli.main import main

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=caught.value.code or 0, out=out, err=err)

    return run


@pytest.fixture
def one_thread():
    """Tiny products are faster in one thread, above all on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny_clip():
    """CLIP with random weights, its whole vocabulary and little else."""
    import torch

    from twinlens.config import ClipConfig, ClipTextConfig, VitConfig
    from twinlens.model.clip import Clip

    torch.manual_seed(0)
    sizes = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 32}
    return Clip(
        ClipConfig(
            image=VitConfig(**sizes, image_size=32, patch_size=16),
            text=ClipTextConfig(**sizes, vocab_size=49408, context=12),
            dim=8,
        )
    ).eval()


@pytest.fixture
def own_folder(tiny_clip, tmp_path):
    """`tiny_clip` as our own checkpoint folder, with what it says of its inputs."""
    from twinlens.data.preprocess import Preprocess
    from twinlens.data.tokenizer import TokenizerConfig
    from twinlens.model.checkpoint import save_checkpoint
    from twinlens.runtime.load import INPUTS_NAME, InputsConfig

    folder = tmp_path / "own"
    save_checkpoint(tiny_clip, folder)
    InputsConfig(
        preprocess=Preprocess(image_size=32, resize="squash", mean=(0.5,) * 3, std=(0.5,) * 3),
        tokenizer=TokenizerConfig(kind="clip_bpe", context=12, cleaning="clip"),
    ).write(folder / INPUTS_NAME)
    return folder
