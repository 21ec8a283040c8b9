"""A real ComfyUI to test the pack in: set up, started, talked to, and shown in a browser."""
