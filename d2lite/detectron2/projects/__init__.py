"""Extensions that Detectron2 ships under its own name."""
