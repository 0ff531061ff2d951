#include "kernels.h"

namespace llmctl {

const int8_t kCode4[16] = {-127, -100, -78, -61, -46, -33, -21, -9, 2, 13, 24, 36, 49, 64, 82, 106};
const int8_t kCodeE2M1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

}  // namespace llmctl
