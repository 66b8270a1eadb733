"""Edits in vLLM: a general plugin of it, experimental, for the version that it names.

`rows` knows which rows of vLLM's flat batch are whose, `acting` lets the edits of each request act on its rows, and
neither knows vLLM; `plugin` puts them into it. vLLM calls `register` in each of its processes.
"""


def register() -> None:
    """The entry point: nothing changes unless ``additional_config`` has ``"unike"``."""
    from unike.serve.vllm_plugin.plugin import put_in

    put_in()
