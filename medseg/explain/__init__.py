"""Why a network drew what it drew: which features (Grad-CAM) and which parts of the scan (occlusion) a region rests on."""
