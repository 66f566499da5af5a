"""Beam's knowledge of a method's arguments must be what inspection says, remembered or not."""

import apache_beam as beam
from apache_beam.transforms import core

from sllmr.components.beam_signatures import remember_signatures


class _Doubled(beam.DoFn):
    def process(self, element, factor=2, window=beam.DoFn.WindowParam):
        yield element * factor


class _Other(_Doubled):
    def process(self, element, summand):
        yield element + summand


def test_arguments_are_those_of_a_plain_inspection_for_each_class_and_time():
    remember_signatures()
    inspect = core.get_function_args_defaults.__wrapped__
    for _ in range(2):
        for dofn in (_Doubled(), _Other(), _Doubled()):
            assert core.get_function_args_defaults(dofn.process) == inspect(dofn.process)
    assert core.get_function_args_defaults(_Other().process)[0] == ["element", "summand"]


def test_who_changes_an_answer_does_not_change_the_next():
    core.get_function_args_defaults(_Doubled().process)[0].clear()
    assert core.get_function_args_defaults(_Doubled().process)[0] == ["element", "factor", "window"]


def test_a_method_is_inspected_once(monkeypatch):
    asked = []
    monkeypatch.setattr(core, "get_function_args_defaults", lambda f: asked.append(f) or (["element"], []))
    remember_signatures()
    remember_signatures()
    for _ in range(3):
        assert core.get_function_args_defaults(_Doubled().process) == (["element"], [])
    assert len(asked) == 1
    plain = lambda element: element  # noqa: E731  a function that may be made anew at any time
    core.get_function_args_defaults(plain)
    core.get_function_args_defaults(plain)
    assert len(asked) == 3
