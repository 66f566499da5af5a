"""A SavedModel whose graph depends on what it computes, and not on what its process did before."""

import copy
import os
import re
from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor
from tensorflow.core.framework import function_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.saved_model import fingerprinting_utils

from sllmr.models import artifact_files

_ARGUMENT = "_user_specified_name"
_NUMBERED = re.compile(r"(.*)_(\d+)")


def canonicalize(directory: str) -> None:
    """Numbers the functions of a SavedModel from 0, in the order in which they were traced, and sorts them by name.

    TensorFlow numbers functions and the tensors that they capture by a counter of the process, which is higher after a
    longer training.
    """
    path = os.path.join(directory, "saved_model.pb")
    saved_model = saved_model_pb2.SavedModel()
    with artifact_files.open(path, "rb") as file:
        saved_model.ParseFromString(file.read())
    for meta_graph in saved_model.meta_graphs:
        library = meta_graph.graph_def.library
        names = _renumbered([function.signature.name for function in library.function])
        _replace_strings(meta_graph, names)
        for function in library.function:
            _drop_numbers_of_captured_tensors(function)
        functions = sorted(library.function, key=lambda function: function.signature.name)
        gradients = sorted(library.gradient, key=lambda gradient: gradient.function_name)
        del library.function[:], library.gradient[:]
        library.function.extend(functions)
        library.gradient.extend(gradients)
    with artifact_files.open(path, "wb") as file:
        file.write(saved_model.SerializeToString(deterministic=True))
    fingerprinting_utils.write_fingerprint(directory)


def _renumbered(names: list[str]) -> dict[str, str]:
    """By name of a function: the name with its number replaced by the number's rank."""
    parts = {name: match for name in names if (match := _NUMBERED.fullmatch(name))}
    ranks = {number: rank for rank, number in enumerate(sorted({int(match[2]) for match in parts.values()}))}
    return {name: f"{match[1]}_{ranks[int(match[2])]}" for name, match in parts.items()}


def _drop_numbers_of_captured_tensors(function: function_pb2.FunctionDef) -> None:
    for arguments in function.arg_attr.values():
        if _ARGUMENT in arguments.attr and arguments.attr[_ARGUMENT].s.isdigit():
            del arguments.attr[_ARGUMENT]


def _replace_strings(message: Any, names: Mapping[str, str]) -> None:
    """Replaces each string of `names` below a protocol buffer message, keys of maps included."""
    for field, value in message.ListFields():
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        if is_map:
            _replace_in_map(field, value, names)
        elif field.type == descriptor.FieldDescriptor.TYPE_MESSAGE:
            for part in value if field.is_repeated else [value]:
                _replace_strings(part, names)
        elif field.type == descriptor.FieldDescriptor.TYPE_STRING:
            if field.is_repeated:
                value[:] = [names.get(text, text) for text in value]
            else:
                setattr(message, field.name, names.get(value, value))


def _replace_in_map(field: Any, entries: Any, names: Mapping[str, str]) -> None:
    key_type, value_type = (field.message_type.fields_by_name[name].type for name in ("key", "value"))
    if value_type == descriptor.FieldDescriptor.TYPE_MESSAGE:
        for value in entries.values():
            _replace_strings(value, names)
    if key_type != descriptor.FieldDescriptor.TYPE_STRING:
        return
    # All at once: a new name may be the old one of another function.
    is_message = value_type == descriptor.FieldDescriptor.TYPE_MESSAGE
    values = {names.get(key, key): copy.deepcopy(value) for key, value in entries.items()}
    entries.clear()
    for key, value in values.items():
        if is_message:
            entries[key].CopyFrom(value)
        else:
            entries[key] = value
