"""Imports of the process from which commands are forked, and what each of them would look up first."""

import os

import hydra
import lmms_eval.__main__
import lmms_eval.evaluator
import lmms_eval.models.model_utils.gen_metrics
import lmms_eval.tasks
import pytest
import scipy.io
import transformers.models.qwen2.tokenization_qwen2
import transformers.models.qwen2_5_vl.modeling_qwen2_5_vl
import transformers.models.qwen2_5_vl.processing_qwen2_5_vl

import harness.evaluation.lmms_model
import harness.evaluation.runner
import harness.models.llava
import harness.models.qwen25vl
import harness.pruning.block
import harness.pruning.layer_cut
import harness.tables
import harness.train.loop
import methods.random
from harness.core.overrides import compose
from harness.core.task_index import collection_of

__all__ = ["harness", "hydra", "lmms_eval", "methods", "os", "pytest", "scipy", "transformers"]

compose("config", [])
collection_of("no such task")
os.fsync = lambda descriptor: None  # nothing here is about a machine that loses power
