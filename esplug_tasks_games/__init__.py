"""Tasks of several turns: `number-guessing`, with hints, and `calculator`, with a tool.

Each module is a task. Both show how the hook ``turn`` replies to the model, and how ``reward`` grades a conversation.
"""
