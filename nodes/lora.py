"""Placeholder until the side branch lands."""

from comfy_api.latest import io


class SideBranch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QarvdLora",
            display_name="LoRA Side Branch",
            category="qarvd",
            inputs=[io.Model.Input("model")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        return io.NodeOutput(model)
