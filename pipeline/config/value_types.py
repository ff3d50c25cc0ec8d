"""Types of single values in the schema of the config, and of the open objects that a `_target_` names."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

DOTTED = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$"
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Batches = Count | Annotated[float, Field(gt=0, le=1)]  # a number of batches, or a share of an epoch's
Text = Annotated[str, Field(min_length=1)]


def not_built(*values: object, use: str) -> BeforeValidator:
    """Refuse values that are planned for a later version, and name the value to use instead."""

    def refuse(value: object) -> object:
        if value in values:
            raise PydanticCustomError("not_built", "is not built in this version", {"use": use})
        return value

    return BeforeValidator(refuse)


def _names_licence(text: str) -> str:
    """Refuse what is no SPDX expression in its usual spelling, which other programs compare as text."""
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    try:
        usual = str(canonicalize_license_expression(text))
    except InvalidLicenseExpression:
        raise ValueError("an SPDX expression, such as Apache-2.0, MIT OR Apache-2.0, LicenseRef-Proprietary") from None
    if usual != text:
        raise ValueError(usual)
    return text


Licence = Annotated[Text, AfterValidator(_names_licence)]  # the spelling of SPDX


class Target(BaseModel):
    """An open object: `_target_` is called with the other keys as arguments."""

    model_config = ConfigDict(extra="allow", strict=True)
    target: Annotated[str, Field(alias="_target_", pattern=DOTTED)]


class PartialTarget(Target):
    """An open object that gets its last argument later: the parameters, or the optimizer."""

    partial: Annotated[Literal[True], Field(alias="_partial_")]


def read_value(text: str) -> Any:
    """The value that an override has, near enough: `1e-4` is a number there, as plain YAML does not know."""
    try:
        return float(text) if re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", text) else yaml.safe_load(text)
    except yaml.YAMLError:
        return text
