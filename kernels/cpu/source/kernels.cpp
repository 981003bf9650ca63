// One instruction set's kernels: this file is compiled once per set, with its flags and HB_TABLE naming the table.
#include "attention.h"
#include "linear.h"
#include "rows.h"

namespace hb {

extern const Kernels HB_TABLE;
const Kernels HB_TABLE = {
    HB_NAME,      project, project_add, project_gated, project_best, weigh,          rms_norm, silu, rotate,
    scale_values, widen,   narrow,      attend,        merge_partials, mix_few,
};

}  // namespace hb
