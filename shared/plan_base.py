"""What all sections of a plan are made of: closed and frozen models, and the values that recur in them."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from astrofed.shared.errors import UserMistake

Name = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]*$")]
Fraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Value = bool | int | float | str | tuple[int, ...]


class PlanError(UserMistake):
    """A plan that can't be run: an unknown key, a value out of range, a combination that makes no sense."""


class Section(BaseModel):
    """Base of all plan sections: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Named(Section):
    """A section that names a plug-in; its other keys are the plug-in's own options, checked when it is built."""

    name: Name
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _gather_options(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"name": data}
        if not isinstance(data, dict) or not isinstance(data.get("options", {}), dict):
            return data
        own = {key: value for key, value in data.items() if key in cls.model_fields}
        rest = {key: value for key, value in data.items() if key not in cls.model_fields}
        return {**own, "options": {**own.get("options", {}), **rest}}

    @model_serializer(mode="wrap")
    def _flatten_options(self, handler: Any) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        options = data.pop("options")
        return {**data, **options}
