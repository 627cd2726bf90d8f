"""What a case of a manifest may say."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from medseg.manifest.cases import Case
from medseg.manifest.faults import OTHER_NAMES, PLAIN_NAME, PLAIN_TEXT, Faults
from medseg.manifest.paths import path_fault

CASE_KEYS = ("id", "patient", "image", "label", "fold", "labelled")
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class RawCase:
    """A case as read: its plain values and where they stood (``line 12``, ``training[3]``)."""

    values: Mapping[str, Any]
    where: str


def is_case_id(text: object) -> bool:
    """Whether ``text`` may be a case id: 1 to 100 of letters, digits, ``.``, ``_``, ``-``, first no dot or dash."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


@dataclass
class CaseParser:
    """Turns raw cases into cases; knows what it has seen, so that ids stay unique over both lists."""

    faults: Faults
    channel_count: int
    class_names: tuple[str, ...] = ()
    seen: dict[str, str] = field(default_factory=dict)

    def parse(self, raw: RawCase, *, testing: bool) -> Case | None:
        """The case, or None where it has faults, which are noted."""
        values = raw.values
        case_id = values.get("id")
        where = raw.where if not isinstance(case_id, str) else f"{raw.where}: case {case_id[:100]!r}"
        before = len(self.faults.lines)
        self._check_id(case_id, raw.where, where)
        images = self._paths(values.get("image"), "image", where)
        if images and self.channel_count and len(images) not in (1, self.channel_count):
            self.faults.add(
                where, f"image has {len(images)} paths, expected 1 or one per channel ({self.channel_count})"
            )
        label = values.get("label")
        labels = () if label is None else self._paths(label, "label", where)
        fold = self._fold(values.get("fold"), where, testing=testing)
        patient = self._patient(values.get("patient"), where)
        labelled = self._labelled(values.get("labelled"), where, has_label=bool(labels))
        extra = self._extra(values, where)
        if len(self.faults.lines) > before:
            return None
        return Case(
            id=str(case_id),
            patient=patient or str(case_id),
            images=images,
            labels=labels,
            fold=fold,
            labelled=labelled,
            extra=extra,
        )

    def _check_id(self, case_id: Any, place: str, where: str) -> None:
        if not is_case_id(case_id):
            got = "missing" if case_id is None else repr(case_id)[:120]
            rule = "text of 1 to 100 letters, digits, '.', '_', '-', the first no dot or dash"
            hint = f'; put it in quotes: "{case_id}"' if isinstance(case_id, int) else ""
            self.faults.add(where, f"id is {got}, expected {rule}{hint}")
        elif case_id in self.seen:
            self.faults.add(where, f"id is also that of {self.seen[case_id]}, expected each id once")
        else:
            self.seen[case_id] = place

    def _paths(self, value: Any, key: str, where: str) -> tuple[str, ...]:
        paths = value if isinstance(value, list) else [value]
        if not paths or not all(isinstance(path, str) for path in paths):
            got = "missing" if value is None else repr(value)[:60]
            self.faults.add(where, f"{key} is {got}, expected a path or a list of paths")
            return ()
        for path in paths:
            if fault := path_fault(path):
                self.faults.add(where, f"{key} {path[:200]!r} {fault}")
        twice = {path for place, path in enumerate(paths) if path in paths[:place]}
        if twice and not (key == "image" and _may_be_folders(twice)):
            self.faults.add(where, f"{key} names one path twice, expected each once")
        return tuple(paths)

    def _fold(self, value: Any, where: str, *, testing: bool) -> int | None:
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 999:
            self.faults.add(where, f"fold is {value!r:.60}, expected a whole number of 0 to 999 or nothing")
            return None
        if testing:
            self.faults.add(
                where, f"fold is {value} in a testing case, expected none; testing cases take part in no fold"
            )
        return value

    def _labelled(self, value: Any, where: str, *, has_label: bool) -> tuple[str, ...] | None:
        """Classes that were looked for, in the order of the labels; None for all of them."""
        if value is None:
            return None
        known = self.class_names[1:]
        names = value if isinstance(value, list) else [value]
        if strangers := [name for name in names if name not in known]:
            rule = f"names of classes without background ({', '.join(known)})"
            self.faults.add(where, f"labelled has {strangers[0]!r:.60}, expected {rule}")
        elif not names or len(set(names)) < len(names):
            self.faults.add(
                where, "labelled is empty or names a class twice, expected each class that was looked for once"
            )
        elif not has_label:
            self.faults.add(where, "labelled is given without a label, expected both or neither")
        return None if set(names) == set(known) else tuple(name for name in known if name in names)

    def _patient(self, value: Any, where: str) -> str:
        """The patient's name; empty where none is given, as it is the id then."""
        if isinstance(value, str) and value.strip() and PLAIN_TEXT.fullmatch(value):
            return value
        if value is not None:
            hint = f'; put it in quotes: "{value}"' if isinstance(value, int) else ""
            self.faults.add(where, f"patient is {value!r:.60}, expected text{hint}")
        return ""

    def _extra(self, values: Mapping[str, Any], where: str) -> dict[str, str]:
        extra: dict[str, str] = {}
        for key, value in values.items():
            if key in CASE_KEYS:
                continue
            if not PLAIN_NAME.fullmatch(key):
                self.faults.add(where, f"key {key!r:.60} is no name, expected plain text without , ; = |")
                continue
            if meant := _misspelt(key, values):
                self.faults.add(where, f"key {key!r} is unknown, did you mean {meant!r}?")
            elif isinstance(value, (str, int, float)) and PLAIN_TEXT.fullmatch(str(value)):
                extra[key] = str(value).lower() if isinstance(value, bool) else str(value)
            elif value is not None:
                self.faults.add(where, f"{key} is {value!r:.60}, expected text, a number or nothing")
        return extra


def _may_be_folders(paths: Iterable[str]) -> bool:
    """Whether none is a scan's file by its name: of a DICOM folder each channel may take a series, as the config tells."""
    from medseg.imaging import suffix_of  # late: it brings numpy along

    return all(suffix_of(PurePosixPath(path)) is None for path in paths)


_SPELLINGS: dict[str, tuple[str | None, str | None]] = {}


def _misspelt(key: str, values: Mapping[str, Any]) -> str | None:
    """The key that was meant by a further column that looks like one of ours, None for an honest further column."""
    if key not in _SPELLINGS and len(_SPELLINGS) < 1000:  # a manifest repeats its few columns in every case
        _SPELLINGS[key] = _spelling(key)
    close, other = _SPELLINGS.get(key) or _spelling(key)
    return close or (other if other is not None and other not in values else None)


def _spelling(key: str) -> tuple[str | None, str | None]:
    folded = key.strip().lower()
    close = difflib.get_close_matches(folded, CASE_KEYS, n=1, cutoff=0.8)
    other = OTHER_NAMES.get(folded)
    return (close[0] if close else None), (other if other in CASE_KEYS else None)
