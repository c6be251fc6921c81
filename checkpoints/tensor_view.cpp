#include "checkpoints/tensor_view.h"

#include "checkpoints/layout.h"

namespace cinch {

TensorData TensorView::read_rows(const std::string& name, int64_t begin, int64_t end) const {
  TensorData data = read(name);
  const ByteRange range = row_range(data.info, begin, end, name);
  data.bytes = data.bytes.subspan(range.offset, range.size);
  data.info = row_info(data.info, begin, end);
  return data;
}

}  // namespace cinch
