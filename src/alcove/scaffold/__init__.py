"""Projects to start from: templates, and the root file systems that they are built on."""
