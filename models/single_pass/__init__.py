"""Single forwards without a decode loop: classes, spans, embeddings and scores."""
