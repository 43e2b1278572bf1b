// Many arrays as one, and back: what XLA would compile a copy for each of.

#include <cstddef>
#include <cstring>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

ffi::Error Join(ffi::RemainingArgs leaves, ffi::Result<ffi::AnyBuffer> flat) {
  char *to = static_cast<char *>(flat->untyped_data());
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    auto leaf = leaves.get<ffi::AnyBuffer>(i).value();
    std::memcpy(to, leaf.untyped_data(), leaf.size_bytes());
    to += leaf.size_bytes();
  }
  return ffi::Error::Success();
}

ffi::Error Split(ffi::AnyBuffer flat, ffi::RemainingRets leaves) {
  const char *from = static_cast<const char *>(flat.untyped_data());
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    auto leaf = leaves.get<ffi::AnyBuffer>(i).value();
    std::memcpy(leaf->untyped_data(), from, leaf->size_bytes());
    from += leaf->size_bytes();
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(l2ljax_join, Join,
                              ffi::Ffi::Bind().RemainingArgs().Ret<ffi::AnyBuffer>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(l2ljax_split, Split,
                              ffi::Ffi::Bind().Arg<ffi::AnyBuffer>().RemainingRets());
