"""Imports of the process from which commands are forked."""

import os

import hydra
import lmms_eval.__main__
import lmms_eval.evaluator
import lmms_eval.tasks
import pytest
import transformers.models.qwen2_5_vl.modeling_qwen2_5_vl
import transformers.models.qwen2_5_vl.processing_qwen2_5_vl

import harness.evaluation.lmms_model
import harness.evaluation.runner
import harness.tables
import harness.train.loop
import methods

__all__ = ["harness", "hydra", "lmms_eval", "methods", "os", "pytest", "transformers"]

os.fsync = lambda descriptor: None  # nothing here is about a machine that loses power
