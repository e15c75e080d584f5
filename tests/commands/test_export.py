"""nnssl_export: what is written loads in other programs and says what our encoder says."""

import torch
from dynamic_network_architectures.architectures.primus import Primus

from nnssl_reg.commands.entry import main
from nnssl_reg.features.encode import encode
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.json_files import read_json
from nnssl_reg.pretraining.checkpoint import load_encoder


def export(folder, *args: str) -> int:
    return main(["--model", str(folder), *args], "nnssl_export")


def test_weights_for_nnunet_load_without_unpickling_and_fit_the_class_that_is_named(tmp_path, model_folder, capsys):
    folder = model_folder(tmp_path)
    assert export(folder, "--nnunet", "-input_shape", "12", "8", "16", "-num_classes", "5") == 0
    path = folder / "export" / "nnunet_Primus.pth"
    assert str(path) in capsys.readouterr().out
    written = torch.load(path, weights_only=True)
    about = read_json(path.with_suffix(".json"))
    primus = Primus(**about["arguments"]).eval()
    primus.load_state_dict(written["network_weights"], strict=True)
    assert primus(torch.zeros(1, 1, 12, 8, 16)).shape == (1, 5, 12, 8, 16)
    plan = written["nnssl_adaptation_plan"]
    assert plan["recommended_downstream_patchsize"] == [12, 8, 16]
    assert (
        (plan["key_to_encoder"], plan["key_to_stem"])
        == (primus.key_to_encoder, primus.key_to_stem)
        == ("eva", "down_projection")
    )
    assert plan["keys_to_in_proj"] == list(primus.keys_to_in_proj) and plan["key_to_lpe"] == primus.key_to_lpe
    assert about["axes"] == "zyx" and about["spacing_mm_xyz"] == [4.0, 4.0, 4.0]


def test_torchscript_gives_the_features_of_a_volume(tmp_path, model_folder):
    folder = model_folder(tmp_path)
    assert export(folder, "--torchscript", "-o", str(tmp_path / "out")) == 0
    script = torch.jit.load(tmp_path / "out" / "encoder.torchscript.pt")
    values = torch.rand(1, 17, 12, 10, generator=torch.Generator().manual_seed(0))
    ours = encode(Image(values.numpy(), Grid((17, 12, 10), torch.eye(4).numpy())), load_encoder(folder, "cpu")[1],
                  window_size=(64, 64, 64), window_overlap=0.25, token_shifts=(1, 1, 1), device="cpu")  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(script(values[None])[0], ours.values, rtol=0, atol=1e-4)
    assert read_json(tmp_path / "out" / "encoder.torchscript.json")["patch_size"] == [4, 4, 4]


def test_a_shared_model_is_exported_to_another_folder_only(tmp_path, model_folder, capsys):
    main(["--model", str(model_folder(tmp_path)), "-o", str(tmp_path / "shared")], "nnssl_export_model")
    files = sorted((tmp_path / "shared").iterdir())
    assert export(tmp_path / "shared", "--torchscript") == 1
    assert "Give -o FOLDER" in capsys.readouterr().err
    assert export(tmp_path / "shared", "--torchscript", "-o", str(tmp_path / "out")) == 0
    assert (tmp_path / "out" / "encoder.torchscript.pt").exists() and sorted((tmp_path / "shared").iterdir()) == files


def test_what_cannot_be_exported_is_said(tmp_path, model_folder, capsys):
    folder = model_folder(tmp_path)
    for args, said in (((), "--nnunet, --torchscript"), (("--nnunet", "-input_shape", "9", "8", "8"), "multiple of the patch"),
                       (("--nnunet", "-num_classes", "0"), "-num_classes 0"),
                       (("--torchscript", "-chk", "best"), "no checkpoint_best")):  # fmt: skip
        assert export(folder, *args) == 1
        assert said in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert not (folder / "export").exists()
