"""Environments that keep state where a snapshot may not look, or leave traces outside the process."""

from tests.hiding_places import of_code, of_types, outside
from tests.hiding_places.house import Room, Visit, make_house
from tests.hiding_places.places import PLACES

__all__ = ["PLACES", "Room", "Visit", "make_house", "of_code", "of_types", "outside"]
