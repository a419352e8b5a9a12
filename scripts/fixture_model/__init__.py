"""The fixture model: a small Llama that copies by content, made and measured by the scripts one folder up."""
