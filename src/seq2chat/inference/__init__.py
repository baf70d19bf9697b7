"""Text in, text out: load a trained model, chat, translate, fill masks, evaluate."""
