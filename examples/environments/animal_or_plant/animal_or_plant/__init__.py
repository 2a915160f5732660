"""The environment animal-or-plant."""

from animal_or_plant.taskset import AnimalOrPlantTaskset

__all__ = ["AnimalOrPlantTaskset"]
