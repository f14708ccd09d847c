"""Your own functions of other exercises, by name: `from pieces import q_sample`.

Python cannot import a module with a name such as `01_forward_process` by an import statement.
"""

from importlib import import_module

WHERE = {
    "linear_schedule": "01_forward_process",
    "q_sample": "01_forward_process",
    "posterior": "02_posterior",
    "x_0_from_eps": "03_predictions",
    "x_0_from_v": "03_predictions",
    "loss": "04_loss",
    "time_embedding": "05_time_embedding",
    "attention": "06_attention",
    "make_layers": "07_residual_block",
    "residual_block": "07_residual_block",
    "ema_decay": "08_ema",
    "ema_update": "08_ema",
    "ddpm_step": "09_ddpm_step",
    "ddim_step": "10_ddim_step",
    "drop_labels": "11_guidance",
    "guided": "11_guidance",
    "heun_step": "12_heun_step",
    "dpmpp_2m_step": "13_dpmpp_2m_step",
    "flow_matching_loss": "14_flow_matching",
    "flow_step": "14_flow_matching",
    "consistency_loss": "15_consistency",
    "train": "16_train_and_draw",
    "draw": "16_train_and_draw",
    "Network": "16_train_and_draw",
}


def __getattr__(name: str):
    if name not in WHERE:
        raise AttributeError(f"no exercise has a function {name}")
    return getattr(import_module(WHERE[name]), name)
