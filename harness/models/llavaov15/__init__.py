"""LLaVA-OneVision-1.5 as a standard transformers model: our own port, written from a description of the released code.

transformers lacks this family, and the code that is shipped with its weights needs old versions. After `register()`,
the Auto classes load the released tensors and the processor; no code in a checkpoint is executed.
Paper: arXiv 2509.23661. Weights: lmms-lab/LLaVA-OneVision-1.5-8B-Instruct.
"""

MODEL_TYPE = "llavaonevision1_5"


def register() -> None:
    """Register the family with transformers' Auto classes; call this before they read a checkpoint.

    The processor is Qwen2.5-VL's; patches (temporal patch 1), pixel limits and template come from the checkpoint.
    """
    import transformers as tf

    from harness.models.compat import register_image_processors
    from harness.models.llavaov15 import configuration, modeling, vision

    config, vit = configuration.LlavaOnevision15Config, configuration.RiceVitConfig
    for part in (config, vit, configuration.LlavaOnevision15TextConfig):
        tf.AutoConfig.register(part.model_type, part, exist_ok=True)
    tf.AutoModel.register(config, modeling.LlavaOnevision15Model, exist_ok=True)
    tf.AutoModel.register(vit, vision.RiceVisionModel, exist_ok=True)
    for auto in (tf.AutoModelForImageTextToText, tf.AutoModelForCausalLM):
        auto.register(config, modeling.LlavaOnevision15ForConditionalGeneration, exist_ok=True)
    tf.AutoProcessor.register(config, tf.Qwen2_5_VLProcessor, exist_ok=True)
    register_image_processors(config)
    tf.AutoVideoProcessor.register(config, tf.Qwen2VLVideoProcessor, exist_ok=True)
