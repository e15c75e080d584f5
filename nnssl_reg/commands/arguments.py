"""The flags of every command, in argparse alone, so that --help answers at once."""

from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass

FEATURES = ("dino", "mind", "dino+mind", "auto")
INITS = ("auto", "identity", "center", "moments", "affine")
DEVICES = "cpu, cuda, cuda:1, mps; default: cuda if there is one, else cpu"


@dataclass(frozen=True)
class Command:
    """A console script: what it is for, its flags, and the module whose run(args) does the work."""

    help: str
    module: str
    add_arguments: Callable[[ArgumentParser], None]


def _folders(parser: ArgumentParser, *names: str) -> None:
    for name in names:
        parser.add_argument(f"-{name}", metavar="FOLDER", help=f"beats the environment variable nnssl_{name}")


def _datasets(parser: ArgumentParser) -> None:
    parser.add_argument("-d", nargs="+", required=True, metavar="ID", help="data sets: 1, 001 or Dataset001_Name")


def _fingerprint(parser: ArgumentParser) -> None:
    parser.add_argument("-npfp", type=int, default=None, metavar="N", help="processes for the fingerprint, as -np")
    parser.add_argument("--clean", action="store_true", help="compute again what is already there")
    _cluster(parser)


def _cluster(parser: ArgumentParser) -> None:
    parser.add_argument("--dask", metavar="ADDRESS", default=None,
                        help="give the cases to the workers of a Dask scheduler, as tcp://host:8786")  # fmt: skip


def _planning(parser: ArgumentParser) -> None:
    parser.add_argument("-gpu_memory_target", type=float, default=None, metavar="GB",
                        help="memory to plan for; default: this machine's GPU, else 8")  # fmt: skip
    parser.add_argument("-overwrite_target_spacing", nargs=3, type=float, default=None, metavar="MM",
                        help="spacing in mm along right, anterior, superior")  # fmt: skip
    parser.add_argument("-overwrite_plans_name", default="nnsslPlans", metavar="NAME", help="default: nnsslPlans")


def _preprocessing(parser: ArgumentParser) -> None:
    parser.add_argument("-c", nargs="+", default=None, metavar="CONFIGURATION", help="default: all in the plans")
    parser.add_argument(
        "-np", type=int, default=None, metavar="N", help="processes; default: as cores and memory allow; 0: none but this one"
    )
    parser.add_argument("--no_pbar", action="store_true", help="no progress bar")


def _plan_and_preprocess(parser: ArgumentParser) -> None:
    _datasets(parser)
    _fingerprint(parser)
    _planning(parser)
    _preprocessing(parser)
    parser.add_argument("--verify_dataset_integrity", action="store_true", help="read every file first, list all errors")
    parser.add_argument("--no_pp", action="store_true", help="stop after planning")
    parser.add_argument("--dry_run", action="store_true", help="print memory, time and disk estimates; write nothing")
    _folders(parser, "raw", "preprocessed")


def _extract_fingerprint(parser: ArgumentParser) -> None:
    _datasets(parser)
    _fingerprint(parser)
    parser.add_argument("--no_pbar", action="store_true", help="no progress bar")
    _folders(parser, "raw", "preprocessed")


def _plan_experiment(parser: ArgumentParser) -> None:
    _datasets(parser)
    _planning(parser)
    parser.add_argument("--dry_run", action="store_true", help="print the plans and what they will cost; write nothing")
    _folders(parser, "preprocessed")


def _preprocess(parser: ArgumentParser) -> None:
    _datasets(parser)
    _preprocessing(parser)
    parser.add_argument("-p", default="nnsslPlans", metavar="PLANS", help="default: nnsslPlans")
    parser.add_argument("--clean", action="store_true", help="preprocess again what is already there")
    _cluster(parser)
    _folders(parser, "raw", "preprocessed")


def _train_dino(parser: ArgumentParser) -> None:
    parser.add_argument("dataset", nargs="*", metavar="DATASET ... CONFIGURATION",
                        help="data sets (1, 001 or Dataset001_Name), then the configuration; default: 3d_fullres")  # fmt: skip
    parser.add_argument("-d", nargs="+", metavar="ID", help="the data sets, instead of by position")
    parser.add_argument("-c", metavar="CONFIGURATION", help="the configuration, instead of by position")
    parser.add_argument("-weights", nargs="+", type=float, default=None, metavar="WEIGHT",
                        help="how often each data set is seen, relative to the others; default: by its cases")  # fmt: skip
    parser.add_argument("-p", default="nnsslPlans", metavar="PLANS", help="default: nnsslPlans")
    parser.add_argument(
        "-num_gpus", type=int, default=1, metavar="N", help="GPUs on this machine that share each batch; default: 1"
    )
    parser.add_argument("--continue", "--c", dest="resume", action="store_true", help="go on from the latest checkpoint")
    parser.add_argument("-device", default=None, help=DEVICES)
    parser.add_argument("--seed", type=int, default=None, help="same seed, same result on one machine; default: 0")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.NAME=VALUE",
                        help="change a plan value for this run, e.g. pretraining.steps=500")  # fmt: skip
    parser.add_argument("-epochs", "--epochs", type=int, default=None, metavar="N",
                        help="length of the run in planned epochs; with --continue, a finished run goes on")  # fmt: skip
    parser.add_argument("-max_minutes", type=float, default=None, metavar="MIN", help="save and stop after this time")
    parser.add_argument("-fit_minutes", type=float, default=None, metavar="MIN",
                        help="as many steps as this machine does in this time, measured first; schedules fit them")  # fmt: skip
    parser.add_argument("-probe_pairs", metavar="JSON", default=None,
                        help="pairs with labels: each probe also registers the first four and tells their Dice")  # fmt: skip
    parser.add_argument("--dry_run", action="store_true", help="print memory, time and disk estimates; write nothing")
    parser.add_argument("--no_pbar", action="store_true", help="no progress bar")
    _folders(parser, "preprocessed", "results")


def _model(parser: ArgumentParser) -> None:
    parser.add_argument("--model", "-model", metavar="FOLDER",
                        help="a folder of nnssl_train_dino or nnssl_export_model, or the name of a packaged model")  # fmt: skip
    parser.add_argument("-d", metavar="ID", help="the data set whose model to use")
    parser.add_argument("-c", metavar="CONFIGURATION", default=None, help="its configuration")
    parser.add_argument("-p", metavar="PLANS", default=None, help="its plans")


def _register(parser: ArgumentParser) -> None:
    _what_to_register(parser)
    parser.add_argument("-o", metavar="FOLDER", help="output; default: a folder beside the json, or in the current folder")
    parser.add_argument("--features", choices=FEATURES,
                        help="auto: dino+mind for CT beside MR, else mind; default: dino+mind with a model trained here, "
                             "a shared model's own choice, else mind")  # fmt: skip
    _model(parser)
    parser.add_argument("--init", choices=INITS,
                        help="initial alignment; default: the plan's, auto")  # fmt: skip
    parser.add_argument("--settings", metavar="JSON", help="settings that nnssl_tune_registration found")
    parser.add_argument("--regularisation", choices=("weak", "medium", "strong"),
                        help="how stiff: half the planned smoothness, as planned (default), three times")  # fmt: skip
    parser.add_argument("--diffeomorphic", action="store_true", help="a field that folds nowhere and has an inverse")
    parser.add_argument("--inverse", action="store_true", help="write the inverse field, too, with its error in mm")
    parser.add_argument("--export", nargs="+", choices=("l2r", "ants"), metavar="FORM",
                        help="write transforms also as Learn2Reg (l2r) or ANTs (ants) names them")  # fmt: skip
    parser.add_argument("--zip", action="store_true", help="with --export l2r: pack its files into submission.zip")
    parser.add_argument("-device", default=None, help=DEVICES)
    parser.add_argument("-limit", type=int, default=None, metavar="N", help="the first N pairs only")
    parser.add_argument("-num_parts", "--num_parts", type=int, default=1, metavar="N", help="share the pairs among N runs ...")
    parser.add_argument("-part_id", "--part_id", type=int, default=0, metavar="K", help="... of which this is number K, from 0")
    parser.add_argument("--overwrite", action="store_true", help="register again what is there already")
    parser.add_argument("-volume", type=int, default=None, metavar="N", help="which volume of a 4-D file")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.NAME=VALUE",
                        help="change a plan value for this run, e.g. registration.smoothness=1")  # fmt: skip
    parser.add_argument("--no_figures", action="store_true", help="write no pictures")
    parser.add_argument("--no_pbar", action="store_true", help="no progress bar")
    _folders(parser, "results")


def _tune_registration(parser: ArgumentParser) -> None:
    parser.add_argument("-i", required=True, metavar="JSON", help="pairs with labels or landmarks of both images")
    parser.add_argument("-o", metavar="FOLDER", help="output; default: a folder beside the json")
    parser.add_argument("--synthetic", action="store_true",
                        help="without labels: on deformations and intensity changes made of the images themselves")  # fmt: skip
    parser.add_argument("-labels", nargs="+", type=int, metavar="ID", help="these labels only; default: all of both images")
    parser.add_argument("-trials", type=int, default=40, metavar="N", help="sets of values to try at most; default: 40")
    parser.add_argument("-parameters", nargs="+", metavar="SECTION.NAME", help="tune these; default: all that matter")
    parser.add_argument("-max_minutes", type=float, default=None, metavar="MIN", help="end the search after this time")
    parser.add_argument("--seed", type=int, default=0, help="of random trials and synthetic pairs; default: 0")
    parser.add_argument("--features", choices=FEATURES, help="default: as nnssl_register")
    _model(parser)
    parser.add_argument("--init", choices=INITS, help="initial alignment; default: the plan's, auto")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.NAME=VALUE",
                        help="a value that stays as given, e.g. registration.rounds=2")  # fmt: skip
    parser.add_argument("-device", default=None, help=DEVICES)
    parser.add_argument("-volume", type=int, default=None, metavar="N", help="which volume of a 4-D file")
    parser.add_argument("--overwrite", action="store_true", help="begin anew, without the trials that are there")
    parser.add_argument("--no_pbar", action="store_true", help="no progress bar")
    _folders(parser, "results")


def _what_to_register(parser: ArgumentParser) -> None:
    source = parser.add_argument_group("what to register (a json of pairs, or two files)")
    source.add_argument("-i", metavar="JSON", help="list of {fixed, moving, fixed_label?, moving_label?, ...} or dataset.json")
    source.add_argument("-f", metavar="FIXED", help="fixed image")
    source.add_argument("-m", metavar="MOVING", help="moving image")
    source.add_argument("-fl", metavar="LABEL", help="label of the fixed image")
    source.add_argument("-ml", metavar="LABEL", help="label of the moving image")
    source.add_argument("-fmask", metavar="MASK", help="where the fixed image counts (above 0)")
    source.add_argument("-mmask", metavar="MASK", help="where the moving image counts (above 0)")
    source.add_argument("--rigid_mask", metavar="MASK",
                        help="parts of the fixed image that move as rigid bodies (bones, a tumour)")  # fmt: skip


def _apply_transform(parser: ArgumentParser) -> None:
    parser.add_argument("-t", required=True, metavar="TRANSFORM", help="a field (.nii.gz) or composite (.h5) of nnssl_register")
    parser.add_argument(
        "-i", nargs="+", required=True, metavar="FILE", help="images, labels, or landmarks (.csv, .fcsv, .mrk.json)"
    )
    parser.add_argument("-o", required=True, metavar="FOLDER", help="output folder")
    parser.add_argument("-r", metavar="REFERENCE", help="the grid to write images on; default: the field's (fixed image's)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--label", action="store_true", help="the images are labels (nearest); default: as their values look")
    kind.add_argument("--image", action="store_true", help="the images are intensities (linear)")
    parser.add_argument("--inverse", action="store_true",
                        help="fixed images to the moving grid (-r), moving landmarks to the fixed image")  # fmt: skip
    parser.add_argument("-space", choices=("ras", "lps", "voxel"), help="coordinates of .csv landmarks")
    parser.add_argument("-points_image", metavar="IMAGE", help="image whose voxels .csv landmarks of space voxel count")
    parser.add_argument("-volume", type=int, default=None, metavar="N", help="which volume of a 4-D image")


def _transform_info(parser: ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="fields (.nii.gz), composites (.h5), affines (.mat, .tfm, .txt)"
    )


def _evaluate(parser: ArgumentParser) -> None:
    parser.add_argument("-i", required=True, metavar="JSON", help="the pairs that were registered")
    parser.add_argument("-o", required=True, metavar="FOLDER", help="the folder nnssl_register wrote")
    parser.add_argument("--no_pbar", action="store_true", help="no progress bar")


def _export_model(parser: ArgumentParser) -> None:
    _model(parser)
    parser.add_argument("-o", required=True, metavar="FILE.zip", help="a zip to share, or a folder (any other name)")
    parser.add_argument("--half", action="store_true", help="weights in float16: half the size")
    parser.add_argument("-chk", metavar="NAME", help="checkpoint: final, best, latest; default: the one with most steps")
    parser.add_argument("--notes", metavar="TEXT", help="known limits, for the model card")
    parser.add_argument("--licence", metavar="TEXT", help="of the data, instead of what their dataset.json says")
    parser.add_argument(
        "-data", nargs="+", metavar="ID", help="raw data sets that it was trained on; default: the one it names"
    )
    parser.add_argument("--default_features", choices=FEATURES, default="dino+mind",
                        help="what nnssl_register uses with it where nobody says; default: dino+mind")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace what was exported to -o before")
    _folders(parser, "raw", "results")


def _import_model(parser: ArgumentParser) -> None:
    parser.add_argument("zip", metavar="FILE.zip", help="what nnssl_export_model wrote")
    parser.add_argument("-name", metavar="Dataset001_Name", help="import it under this data set's name; default: its own")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that was imported before")
    _folders(parser, "results")


def _info(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the same as json")
    _folders(parser, "raw", "preprocessed", "results")


def _export(parser: ArgumentParser) -> None:
    _model(parser)
    parser.add_argument("-chk", default=None, choices=("final", "best", "latest", "previous"),
                        help="checkpoint; default: final, if there is none the latest")  # fmt: skip
    parser.add_argument("-o", metavar="FOLDER", help="output; default: export in the model's folder")
    parser.add_argument("--nnunet", action="store_true", help="weights for nnU-Net's Primus, with the network's arguments")
    parser.add_argument("-input_shape", type=int, nargs=3, default=None, metavar="VOXELS",
                        help="with --nnunet: its patch size, in the order of -axes; default: the training crop")  # fmt: skip
    parser.add_argument(
        "-num_classes", type=int, default=2, metavar="N", help="with --nnunet: outputs of the untrained decoder"
    )
    parser.add_argument("-axes", choices=("zyx", "xyz"), default="zyx",
                        help="with --nnunet: the order of its arrays' axes; default: zyx, nnU-Net's own")  # fmt: skip
    parser.add_argument("--keep_registers", action="store_true",
                        help="with --nnunet: class Primus with register tokens for all sizes")  # fmt: skip
    parser.add_argument("--torchscript", action="store_true", help="the encoder as TorchScript, for volumes of any size")
    _folders(parser, "results")


def _demo(parser: ArgumentParser) -> None:
    parser.add_argument("-o", default="nnssl_demo", metavar="FOLDER", help="default: ./nnssl_demo")
    parser.add_argument("-minutes", type=float, default=0.0, metavar="MIN",
                        help="also plan, preprocess and pretrain so long; default: 0, the shipped model serves")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the phantoms and the training; default: 0")
    parser.add_argument("-device", default=None, help=DEVICES)


_ROOM = "nnssl_reg.commands."
COMMANDS = {
    "nnssl_plan_and_preprocess": Command("Fingerprint, plan and preprocess raw data sets.",
                                         _ROOM + "plan_and_preprocess", _plan_and_preprocess),
    "nnssl_extract_fingerprint": Command("Measure raw data sets.", _ROOM + "extract_fingerprint", _extract_fingerprint),
    "nnssl_plan_experiment": Command("Choose every number from the fingerprint.", _ROOM + "plan_experiment", _plan_experiment),
    "nnssl_preprocess": Command("Crop, resample, normalise and store the cases.", _ROOM + "preprocess", _preprocess),
    "nnssl_train_dino": Command("Pretrain PRIMUS on preprocessed volumes, without labels.", _ROOM + "train_dino", _train_dino),
    "nnssl_register": Command("Register pairs of images.", _ROOM + "register", _register),
    "nnssl_tune_registration": Command("Search registration settings on labelled or synthetic pairs.",
                                       _ROOM + "tune_registration", _tune_registration),
    "nnssl_apply_transform": Command("Apply a written transform to images, labels or landmarks.",
                                     _ROOM + "apply_transform", _apply_transform),
    "nnssl_transform_info": Command("Say what transform files map, in which units, how far and how regularly.",
                                    _ROOM + "transform_info", _transform_info),
    "nnssl_evaluate": Command("Judge written transforms with labels.", _ROOM + "evaluate", _evaluate),
    "nnssl_export_model": Command("Pack a trained model to share: weights, plans, card, checksums.",
                                  _ROOM + "export_model", _export_model),
    "nnssl_import_model": Command("Import a shared model into nnssl_results.", _ROOM + "import_model", _import_model),
    "nnssl_info": Command("Say what is here: versions, folders, devices, memory, models, data sets.", _ROOM + "info", _info),
    "nnssl_export": Command("Write a trained encoder for nnU-Net or as TorchScript.", _ROOM + "export", _export),
    "nnssl_demo": Command("Register phantoms with the shipped model, or one trained on them.", _ROOM + "demo", _demo),
}  # fmt: skip
