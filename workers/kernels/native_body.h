// Every kernel, once. Included inside a namespace that defines `Lanes`.
//
// Nothing from the C++ standard library may be used in these files: an inline library function compiled for
// AVX-512 could be the copy that the linker keeps for the baseline too.

#include "work_items.h"

#include "weights.h"

#include "dot.h"

#include "elementwise.h"

#include "choosing_rows.h"

#include "quantised.h"

#include "rounded.h"

#ifdef POTLUCK_OWN_PANELS
#include "blocks_256.h"

#include "small_blocks_256.h"

#include "grids_256.h"

#include "panels.h"
#endif
#ifdef POTLUCK_PLAIN
#include "fastest_256.h"
#endif

#include "rounded_dots.h"

#include "formats.h"

#include "kv_page.h"

#include "attention.h"
#include "ffn.h"
