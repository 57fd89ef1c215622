// Lets one binary load where the C and C++ libraries are older than those it was compiled with.
//
// GCC 12's headers, and glibc's, refer to functions that are younger than the systems torch runs on
// (glibc 2.28). Such references decide the tag of a wheel (manylinux_2_28). What is defined here is
// not asked of the system; csrc/exports.map keeps it inside the extension. Where the compiler's own
// headers do not refer to one of these, its definition is unused.
#include <new>
#include <sstream>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GLIBCXX__)

// Members of templates, which libstdc++ has compiled since GCC 9 and, of C++20, GCC 11.
template std::basic_stringstream<char>::basic_stringstream();
template std::basic_ostringstream<char>::basic_ostringstream();
#if __cplusplus >= 202002L && _GLIBCXX_RELEASE >= 11
template std::string std::basic_stringbuf<char>::str() const&;
template std::string std::basic_stringbuf<char>::str() &&;
#endif

// libstdc++ of GCC 11: std::allocator's answer to a size that overflows.
namespace std {
void __throw_bad_array_new_length() { throw bad_array_new_length(); }
}  // namespace std

extern "C" {

// glibc 2.32: whether std::shared_ptr may count without atomic instructions. It may not.
char __libc_single_threaded = 0;

// glibc 2.29 has the same functions under a new version, which leaves out a handler of errors.
double exp_of_glibc_2_2_5(double x);
double log_of_glibc_2_2_5(double x);
__asm__(".symver exp_of_glibc_2_2_5, exp@GLIBC_2.2.5");
__asm__(".symver log_of_glibc_2_2_5, log@GLIBC_2.2.5");
double exp(double x) { return exp_of_glibc_2_2_5(x); }
double log(double x) { return log_of_glibc_2_2_5(x); }

}  // extern "C"

#endif
