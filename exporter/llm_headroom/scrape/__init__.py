"""One target: asked, read, mapped and described."""
