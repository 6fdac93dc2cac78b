"""Adversarial attacks: how far the worst perturbation of a given size moves a posterior."""

from .attack import AttackSet as AttackSet
from .attack import attack as attack
from .divergences import Away as Away
from .divergences import Toward as Toward
