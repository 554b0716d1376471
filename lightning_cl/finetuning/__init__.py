"""The module that is fine-tuned, its backbones and its head."""

from lightning_cl._lazy import lazy

_WHERE = {
    "FineTuningModule": "module",
    "HFTextBackbone": "hf_text_backbone",
    "MLP": "mlp",
    "MLPHead": "mlp_head",
    "load_weights": "loading",
    "WeightsReport": "weights_report",
    "replace_head": "new_head",
    "TorchvisionBackbone": "torchvision_backbone",
    "TimmBackbone": "timm_backbone",
    "HFImageBackbone": "hf_backbone",
    "PretrainedInputs": "image_inputs",
    "pretrained_inputs": "image_inputs",
    "ClassifierHead": "head",
    "CosineHead": "cosine_head",
    "TaskHeads": "task_heads",
    "NearestMean": "nearest_mean",
    "BiasCorrection": "bias_correction",
    "VAE": "vae",
    "xavier_uniform": "initialization",
    "add_adapters": "adapters",
    "adapter_state": "adapters",
    "adapter_counts": "_adapter_build",
    "merge_adapters": "adapters",
    "merged_state": "adapters",
    "save_adapters": "adapter_files",
    "load_adapters": "adapter_files",
    "DepthGroup": "depth_groups",
    "check_phases": "phases",
    "generated_schedule": "recipes",
    "phases_from_yaml": "schedule_text",
    "grouped_optimizer": "parameter_groups",
    "recipe_phases": "recipes",
    "schedule_yaml": "schedule_text",
    "select_parameters": "selectors",
    "warmup_cosine": "warmup",
}
__all__ = sorted(_WHERE)
__getattr__ = lazy(__name__, _WHERE)
