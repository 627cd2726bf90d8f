"""``medseg VERB ...``: finds the verb's module, imports only that, and hands over."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

_VERBS = {
    "prepare": ("medseg.pipelines.prepare", "check scans, plan, and write the prepared data"),
    "train": ("medseg.pipelines.train", "train a network on the prepared data"),
    "crossval": ("medseg.pipelines.crossval", "score all folds together, decide, make one model"),
    "infer": ("medseg.pipelines.infer", "write masks for scans"),
    "evaluate": ("medseg.pipelines.evaluate", "score masks against references"),
    "compare": ("medseg.cli.compare", "tell which differences between runs are more than chance"),
    "explain": ("medseg.cli.explain", "maps of what a model's masks rest on"),
    "report": ("medseg.cli.report", "make the report of scores again"),
    "audit": ("medseg.cli.audit", "look for scans there twice and labels that look wrong"),
    "plan": ("medseg.cli.plan", "show the plan, its memory and how long training will take"),
    "tune": ("medseg.cli.tune", "search stated ranges for a better config"),
    "pretrain": ("medseg.cli.pretrain", "train the network on scans without labels first"),
    "calibrate": ("medseg.cli.calibrate", "make a model tell the expected Dice of its masks"),
    "import-nnunet": ("medseg.cli.import_nnunet", "make a model folder of a trained nnU-Net model"),
    "distil": ("medseg.cli.distil", "train a narrower network that follows a trained model"),
    "export": ("medseg.cli.export", "a model as MONAI bundle, ONNX, 8 bits or container"),
    "serve": ("medseg.cli.serve", "take scans over HTTP, give back their masks"),
    "demo": ("medseg.cli.demo", "all four stages on a small example made here"),
    "init": ("medseg.cli.init", "look at a data folder, write its manifest and config"),
    "manifest": ("medseg.cli.manifest", "build a manifest from a known layout"),
    "schema": ("medseg.cli.schema", "print the JSON schema of configs"),
    "doctor": ("medseg.cli.doctor", "print versions, device and limits for a bug report"),
    "promote": ("medseg.cli.promote", "make a registered model the champion if it is better"),
    "sync": ("medseg.cli.sync", "send what the tracker missed"),
}


def usage() -> str:
    """The text of ``medseg --help``."""
    lines = (f"  {name:<15}{text}" for name, (_, text) in _VERBS.items())
    return "usage: medseg VERB ...\n\n" + "\n".join(lines) + "\n\n'medseg VERB --help' lists a verb's flags.\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; every verb's module has ``main(argv) -> int``.

    Returns:
        The verb's exit code; 0 for help and version, 2 for an unknown verb.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from importlib.metadata import version

        sys.stdout.write(f"medseg {version('medseg')}\n")
        return 0
    verb = arguments[0]
    if verb not in _VERBS:
        import difflib

        close = difflib.get_close_matches(verb, _VERBS, n=1)
        hint = f", did you mean {close[0]!r}?" if close else "; 'medseg --help' lists the verbs"
        sys.stderr.write(f"medseg: {verb!r} is no verb{hint}\n")
        return 2
    module = importlib.import_module(_VERBS[verb][0])
    result: int = module.main(arguments[1:])
    return result


if __name__ == "__main__":
    sys.exit(main())
