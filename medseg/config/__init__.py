"""Configs: their sections, and loading one with every fault named by file and line."""

from medseg.config.loading import load_config, save_config
from medseg.config.sections import Config

__all__ = ["Config", "load_config", "save_config"]
